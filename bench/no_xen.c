/*
 * Preloaded into Debian's xenstored, so that it starts where there is no Xen: what it asks of Xen's libraries and
 * devices for its own domain 0 is granted, nothing ever happens, and there are no other domains. Its socket
 * and its store, which are what bench/xenstore.py looks at, know nothing of it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int handle, events[2];

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned flags)
{
	return &handle;
}

int xc_interface_close(void *xch)
{
	return 0;
}

/* The first field of xc_dominfo_t is the domid. */
int xc_domain_getinfo(void *xch, uint32_t first_domid, unsigned max, uint32_t *info)
{
	if (first_domid)
		return 0;
	*info = 0;
	return 1;
}

void *xengnttab_open(void *logger, unsigned flags)
{
	return &handle;
}

int xengnttab_close(void *xgt)
{
	return 0;
}

int xengnttab_set_max_grants(void *xgt, uint32_t nr_grants)
{
	return 0;
}

void *xenevtchn_open(void *logger, unsigned flags)
{
	return pipe(events) ? NULL : &handle;
}

/* It polls this; nobody writes into it. */
int xenevtchn_fd(void *xce)
{
	return events[0];
}

int xenevtchn_bind_virq(void *xce, unsigned virq)
{
	return 1;
}

int xenevtchn_bind_interdomain(void *xce, uint32_t domid, uint32_t remote_port)
{
	return 2;
}

int xenevtchn_notify(void *xce, uint32_t port)
{
	return 0;
}

int xenevtchn_unbind(void *xce, uint32_t port)
{
	return 0;
}

/* Domain 0's port, and its ring's page, mapped. */
int open(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list more;

	if (flags & O_CREAT) {
		va_start(more, flags);
		mode = va_arg(more, mode_t);
		va_end(more);
	}
	if (!strcmp(path, "/proc/xen/xsd_port") || !strcmp(path, "/proc/xen/xsd_kva"))
		path = "/dev/zero";
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
