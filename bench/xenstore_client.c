/*
 * The clock of bench/xenstore.py: a client of a xenstored's unix socket that costs little itself.
 *
 *   xenstore_client SOCKET populate NODES
 *   xenstore_client SOCKET measure NODES COUNT      a line a row: NAME MEDIAN P99 CPU, in ns
 *
 * Node i is /bench/i/i/i, a hundred to a directory. CPU is what the server took for one, from its schedstat.
 * The messages: xs_wire.h of Xen's public headers.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { READ = 2, WATCH = 4, TRANSACTION_START = 6, TRANSACTION_END = 7, WRITE = 11, WATCH_EVENT = 15, ERROR = 16 };
enum { HEADER = 16, PAYLOAD_MAX = 4096, DEPTH = 16 };

struct conn {
	int fd;
	size_t have, used;	/* bytes in "in", and those that were taken out of it */
	char in[DEPTH * (HEADER + PAYLOAD_MAX)];
	size_t queued;
	char out[DEPTH * (HEADER + PAYLOAD_MAX)];
};

static struct conn a, b;
static pid_t server;
static unsigned nodes;

static void die(const char *why)
{
	fprintf(stderr, "xenstore_client: %s\n", why);
	exit(1);
}

static void dial(struct conn *c, const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	struct ucred peer;
	socklen_t size = sizeof(peer);

	strncpy(to.sun_path, path, sizeof(to.sun_path) - 1);
	c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof(to)))
		die("cannot connect");
	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &peer, &size))
		die("who is the server?");
	server = peer.pid;
}

static void queue(struct conn *c, uint32_t type, uint32_t tx, const void *payload, uint32_t length)
{
	uint32_t header[4] = { type, 0, tx, length };

	memcpy(c->out + c->queued, header, HEADER);
	memcpy(c->out + c->queued + HEADER, payload, length);
	c->queued += HEADER + length;
}

static void flush(struct conn *c)
{
	for (size_t at = 0; at < c->queued;) {
		ssize_t n = write(c->fd, c->out + at, c->queued - at);

		if (n <= 0)
			die("cannot write");
		at += n;
	}
	c->queued = 0;
}

/* The next message's payload, NUL-terminated; it must be of this type. */
static char *take(struct conn *c, uint32_t type)
{
	static char payload[PAYLOAD_MAX + 1];
	uint32_t header[4] = { 0 };

	for (;;) {
		if (c->have - c->used >= HEADER) {
			memcpy(header, c->in + c->used, HEADER);
			if (header[3] > PAYLOAD_MAX)
				die("a message that is too long");
			if (c->have - c->used >= HEADER + header[3])
				break;
		}
		if (c->used) {
			memmove(c->in, c->in + c->used, c->have - c->used);
			c->have -= c->used;
			c->used = 0;
		}
		ssize_t n = read(c->fd, c->in + c->have, sizeof(c->in) - c->have);

		if (n <= 0)
			die("the server has gone");
		c->have += n;
	}
	memcpy(payload, c->in + c->used + HEADER, header[3]);
	payload[header[3]] = 0;
	c->used += HEADER + header[3];
	if (header[0] != type)
		die(header[0] == ERROR ? payload : "a message of another type");
	return payload;
}

static char *ask(uint32_t type, uint32_t tx, const void *payload, uint32_t length)
{
	queue(&a, type, tx, payload, length);
	flush(&a);
	return take(&a, type);
}

/* A path, with its NUL, and the bytes that this is. */
static unsigned path(char *into, unsigned i)
{
	return sprintf(into, "/bench/%u/%u/%u", i / 10000, i / 100 % 100, i % 100) + 1;
}

static unsigned setting(char *into, unsigned i)
{
	unsigned length = path(into, i);

	return length + sprintf(into + length, "value-%08x", (unsigned)random());
}

static void do_read(void)
{
	char text[128];

	if (strlen(ask(READ, 0, text, path(text, random() % nodes))) != 14)
		die("another value than was written");
}

static void do_write(void)
{
	char text[128];

	ask(WRITE, 0, text, setting(text, random() % nodes));
}

static void do_transaction(void)
{
	char text[128];
	uint32_t tx = strtoul(ask(TRANSACTION_START, 0, "", 1), NULL, 10);
	unsigned i = random() % nodes;

	ask(READ, tx, text, path(text, i));
	ask(WRITE, tx, text, setting(text, i));
	ask(TRANSACTION_END, tx, "T", 2);
}

static void before_fire(void)
{
	static const char watch[] = "/bench/0/0\0token";

	queue(&b, WATCH, 0, watch, sizeof(watch));
	flush(&b);
	take(&b, WATCH);
	take(&b, WATCH_EVENT);
}

static void do_fire(void)
{
	char text[128];

	queue(&a, WRITE, 0, text, setting(text, random() % 100));
	flush(&a);
	take(&b, WATCH_EVENT);
}

static void after_fire(void)
{
	take(&a, WRITE);
}

static void do_pipelined(void)
{
	char text[128];

	for (int i = 0; i < DEPTH; i++)
		queue(&a, READ, 0, text, path(text, random() % nodes));
	flush(&a);
	for (int i = 0; i < DEPTH; i++)
		take(&a, READ);
}

static const struct {
	const char *name;
	void (*run)(void), (*before)(void), (*after)(void);
	unsigned each;
} rows[] = {
	{ "read", do_read, NULL, NULL, 1 },
	{ "write", do_write, NULL, NULL, 1 },
	{ "transaction", do_transaction, NULL, NULL, 1 },
	{ "watch-fire", do_fire, before_fire, after_fire, 1 },
	{ "pipelined-read", do_pipelined, NULL, NULL, DEPTH },
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

static uint64_t server_cpu(void)
{
	char name[64];
	uint64_t ns = 0;
	FILE *file;

	sprintf(name, "/proc/%d/schedstat", server);
	file = fopen(name, "r");
	if (!file || fscanf(file, "%" SCNu64, &ns) != 1)
		die("no /proc/PID/schedstat");
	fclose(file);
	return ns;
}

static int ascending(const void *x, const void *y)
{
	uint64_t one = *(const uint64_t *)x, other = *(const uint64_t *)y;

	return (one > other) - (one < other);
}

static void measure(unsigned count)
{
	uint64_t *taken = calloc(count, sizeof(*taken)), cpu = 0;

	for (size_t row = 0; row < sizeof(rows) / sizeof(*rows); row++) {
		unsigned warm = count / 10 + 1;

		if (rows[row].before)
			rows[row].before();
		for (unsigned i = 0; i < warm + count; i++) {
			if (i == warm)
				cpu = server_cpu();
			uint64_t begin = now();

			rows[row].run();
			if (i >= warm)
				taken[i - warm] = (now() - begin) / rows[row].each;
			if (rows[row].after)
				rows[row].after();
		}
		cpu = (server_cpu() - cpu) / count / rows[row].each;
		qsort(taken, count, sizeof(*taken), ascending);
		printf("%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", rows[row].name, taken[count / 2],
		       taken[count * 99 / 100], cpu);
	}
}

static void populate(void)
{
	char text[128];

	for (unsigned i = 0; i < nodes;) {
		int queued = 0;

		for (; queued < DEPTH && i < nodes; queued++, i++)
			queue(&a, WRITE, 0, text, setting(text, i));
		flush(&a);
		while (queued--)
			take(&a, WRITE);
	}
}

int main(int argc, char **argv)
{
	if (argc < 4)
		die("SOCKET populate|measure NODES [COUNT]");
	dial(&a, argv[1]);
	nodes = strtoul(argv[3], NULL, 10);
	if (!strcmp(argv[2], "populate")) {
		populate();
		return 0;
	}
	dial(&b, argv[1]);
	measure(argc > 4 ? strtoul(argv[4], NULL, 10) : 1000);
	return 0;
}
