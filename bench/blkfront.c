/* A frontend for bench/block.py, and what the planes are held against.
 *
 * front() is the guest's half of xen-block: it keeps ``depth`` requests on the ring, kicks and sleeps as Linux
 * does, and uses indirect requests beyond 11 segments. limit() does the same transfers by io_uring, with no ring
 * in between. back() is the least that another half can be: it reads where to put what, but trusts the frontend,
 * marks no grant, counts nothing, and knows how many requests there will be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SEED 88172645463325252ull
enum { SPIN = 50000 /* ns */ };
enum { PAGE = 4096, RING = 64, SLOT = 112, SLOTS = 32, SEGMENTS = 11 };

struct job {
    uint8_t *ring, *data, *tables; /* a page; SLOTS runs of pages; SLOTS pages */
    uint32_t first_gref, table_gref; /* data pages and tables have the references from these on */
    int32_t kick_fd, irq_fd, image_fd;
    uint32_t pages, depth, write, sequential, stop; /* pages of a request; stop: others may set it */
    uint64_t size, operations;     /* of the image, in bytes; how many requests */
    uint64_t ended, elapsed, cpu;  /* results: requests; nanoseconds, those of this thread */
};

static uint64_t clock_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t next_place(const struct job *j, uint64_t *seed, uint64_t n)
{
    uint64_t length = (uint64_t)j->pages * PAGE, places = j->size / length;
    if (j->sequential)
        return n % places * length;
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed % places * length;
}

static void put(const struct job *j, uint32_t index, uint32_t id, uint64_t at)
{
    uint8_t *slot = j->ring + RING + (index % SLOTS) * SLOT;
    int indirect = j->pages > SEGMENTS;
    uint8_t *segments = indirect ? j->tables + (uint64_t)id * PAGE : slot + 24;
    uint64_t wide = id, sector = at / 512;
    uint16_t number = (uint16_t)j->pages;
    slot[0] = indirect ? 6 : (uint8_t)j->write;
    if (indirect) {
        uint32_t gref = j->table_gref + id;
        slot[1] = (uint8_t)j->write;
        memcpy(slot + 2, &number, 2);
        memcpy(slot + 28, &gref, 4);
    } else {
        slot[1] = (uint8_t)j->pages;
    }
    memcpy(slot + 8, &wide, 8);
    memcpy(slot + 16, &sector, 8);
    for (uint32_t n = 0; n < j->pages; n++) {
        uint32_t gref = j->first_gref + id * j->pages + n;
        memcpy(segments + 8 * n, &gref, 4);
        segments[8 * n + 4] = 0;
        segments[8 * n + 5] = 7;
    }
}

int front(struct job *j)
{
    uint32_t *shared = (uint32_t *)j->ring; /* req_prod, req_event, rsp_prod, rsp_event */
    uint32_t req_prod = shared[0], rsp_cons = shared[2], free_ids[SLOTS], n_free = j->depth;
    uint64_t begun = 0, ended = 0, seed = SEED, one = 1, count;
    uint64_t begin = clock_of(CLOCK_MONOTONIC), cpu = clock_of(CLOCK_THREAD_CPUTIME_ID);
    for (uint32_t n = 0; n < n_free; n++)
        free_ids[n] = n;
    while (ended < j->operations && !__atomic_load_n(&j->stop, __ATOMIC_RELAXED)) {
        uint32_t old = req_prod;
        while (n_free && begun < j->operations)
            put(j, req_prod++, free_ids[--n_free], next_place(j, &seed, begun++));
        if (req_prod != old) {
            __atomic_store_n(&shared[0], req_prod, __ATOMIC_RELEASE);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (req_prod - __atomic_load_n(&shared[1], __ATOMIC_ACQUIRE) < req_prod - old &&
                write(j->kick_fd, &one, 8) < 0)
                return errno;
        }
        uint32_t rsp_prod = __atomic_load_n(&shared[2], __ATOMIC_ACQUIRE);
        if (rsp_prod == rsp_cons) {
            __atomic_store_n(&shared[3], rsp_cons + 1, __ATOMIC_RELEASE);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (__atomic_load_n(&shared[2], __ATOMIC_ACQUIRE) == rsp_cons) {
                struct pollfd fd = {j->irq_fd, POLLIN, 0};
                poll(&fd, 1, 5000);
                if (read(j->irq_fd, &count, 8) < 0 && errno != EAGAIN)
                    return errno;
            }
            continue;
        }
        for (; rsp_cons != rsp_prod; rsp_cons++, ended++) {
            uint8_t *slot = j->ring + RING + (rsp_cons % SLOTS) * SLOT;
            int16_t status;
            uint64_t id;
            memcpy(&id, slot, 8);
            memcpy(&status, slot + 10, 2);
            if (status || id >= j->depth)
                return EIO;
            free_ids[n_free++] = (uint32_t)id;
        }
    }
    j->ended = ended;
    j->elapsed = clock_of(CLOCK_MONOTONIC) - begin;
    j->cpu = clock_of(CLOCK_THREAD_CPUTIME_ID) - cpu;
    return 0;
}

struct uring {
    int fd;
    uint32_t *sq_tail, *cq_head, *cq_tail, *array, sq_mask, cq_mask, to_submit;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    uint8_t *sq, *cq;
    size_t sq_size, cq_size, sqes_size;
};

static int uring_open(struct uring *u)
{
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int flags = PROT_READ | PROT_WRITE;
    u->fd = (int)syscall(SYS_io_uring_setup, 64, &params);
    if (u->fd < 0)
        return errno;
    u->sq_size = params.sq_off.array + params.sq_entries * 4;
    u->cq_size = params.cq_off.cqes + params.cq_entries * 16;
    u->sqes_size = params.sq_entries * 64;
    u->sq = mmap(NULL, u->sq_size, flags, MAP_SHARED, u->fd, IORING_OFF_SQ_RING);
    u->cq = mmap(NULL, u->cq_size, flags, MAP_SHARED, u->fd, IORING_OFF_CQ_RING);
    u->sqes = mmap(NULL, u->sqes_size, flags, MAP_SHARED, u->fd, IORING_OFF_SQES);
    if (u->sq == MAP_FAILED || u->cq == MAP_FAILED || u->sqes == MAP_FAILED)
        return ENOMEM;
    u->sq_tail = (uint32_t *)(u->sq + params.sq_off.tail);
    u->array = (uint32_t *)(u->sq + params.sq_off.array);
    u->cq_head = (uint32_t *)(u->cq + params.cq_off.head);
    u->cq_tail = (uint32_t *)(u->cq + params.cq_off.tail);
    u->cqes = (struct io_uring_cqe *)(u->cq + params.cq_off.cqes);
    u->sq_mask = params.sq_entries - 1;
    u->cq_mask = params.cq_entries - 1;
    u->to_submit = 0;
    return 0;
}

static void uring_close(struct uring *u)
{
    munmap(u->sqes, u->sqes_size);
    munmap(u->cq, u->cq_size);
    munmap(u->sq, u->sq_size);
    close(u->fd);
}

static void queue(struct uring *u, const struct job *j, uint64_t id, const uint8_t *data, uint64_t at)
{
    uint32_t index = *u->sq_tail & u->sq_mask, length = j->pages * PAGE;
    struct io_uring_sqe *e = &u->sqes[index];
    memset(e, 0, sizeof *e);
    e->opcode = j->write ? IORING_OP_WRITE : IORING_OP_READ;
    e->fd = j->image_fd;
    e->addr = (uint64_t)data;
    e->len = length;
    e->off = at;
    e->user_data = id;
    u->array[index] = index;
    __atomic_store_n(u->sq_tail, *u->sq_tail + 1, __ATOMIC_RELEASE);
    u->to_submit++;
}

static int enter(struct uring *u, uint32_t wait)
{
    int done = (int)syscall(SYS_io_uring_enter, u->fd, u->to_submit, wait, IORING_ENTER_GETEVENTS, NULL, 0);
    if (done < 0)
        return errno;
    u->to_submit -= (uint32_t)done;
    return 0;
}

/* The next one that is done, or NULL. */
static struct io_uring_cqe *completed(struct uring *u)
{
    uint32_t head = *u->cq_head;
    if (head == __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE))
        return NULL;
    __atomic_store_n(u->cq_head, head + 1, __ATOMIC_RELEASE); /* there is room for more than are under way */
    return &u->cqes[head & u->cq_mask];
}

int limit(struct job *j)
{
    struct uring u;
    struct io_uring_cqe *c;
    int fault = uring_open(&u);
    uint32_t free_ids[SLOTS], n_free = j->depth;
    uint64_t begun = 0, ended = 0, seed = SEED;
    uint64_t begin = clock_of(CLOCK_MONOTONIC), cpu = clock_of(CLOCK_THREAD_CPUTIME_ID);
    for (uint32_t n = 0; n < n_free; n++)
        free_ids[n] = n;
    while (!fault && ended < j->operations) {
        for (; n_free && begun < j->operations; begun++) {
            uint32_t id = free_ids[--n_free];
            queue(&u, j, id, j->data + (uint64_t)id * j->pages * PAGE, next_place(j, &seed, begun));
        }
        fault = enter(&u, 1);
        for (; !fault && (c = completed(&u)); ended++) {
            if (c->res != (int)(j->pages * PAGE))
                fault = EIO;
            free_ids[n_free++] = (uint32_t)c->user_data;
        }
    }
    j->elapsed = clock_of(CLOCK_MONOTONIC) - begin;
    j->cpu = clock_of(CLOCK_THREAD_CPUTIME_ID) - cpu;
    uring_close(&u);
    return fault;
}

/* Until there are requests; as the plane does, it looks for a while before it sleeps. */
static int wait_for_requests(struct job *j, uint32_t req_cons)
{
    uint32_t *shared = (uint32_t *)j->ring;
    uint64_t since = clock_of(CLOCK_MONOTONIC), count;
    while (clock_of(CLOCK_MONOTONIC) - since < SPIN) {
        if (__atomic_load_n(&shared[0], __ATOMIC_ACQUIRE) != req_cons)
            return 0;
        __builtin_ia32_pause();
    }
    __atomic_store_n(&shared[1], req_cons + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&shared[0], __ATOMIC_ACQUIRE) == req_cons) {
        struct pollfd fd = {j->kick_fd, POLLIN, 0};
        if (poll(&fd, 1, 5000) != 1)
            return ETIMEDOUT;
        if (read(j->kick_fd, &count, 8) < 0 && errno != EAGAIN)
            return errno;
    }
    return 0;
}

static int push(struct job *j, uint32_t old, uint32_t new)
{
    uint32_t *shared = (uint32_t *)j->ring;
    uint64_t one = 1;
    __atomic_store_n(&shared[2], new, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (new - __atomic_load_n(&shared[3], __ATOMIC_ACQUIRE) < new - old && write(j->irq_fd, &one, 8) < 0)
        return errno;
    return 0;
}

/* The pages of a request, which are one after the other. */
static const uint8_t *pages_of(const struct job *j, const uint8_t *slot, uint64_t id)
{
    const uint8_t *segments = j->pages > SEGMENTS ? j->tables + id * PAGE : slot + 24;
    uint32_t first, gref;
    memcpy(&first, segments, 4);
    for (uint32_t n = 1; n < j->pages; n++) {
        memcpy(&gref, segments + 8 * n, 4);
        if (gref != first + n || segments[8 * n + 4] != 0 || segments[8 * n + 5] != 7)
            return NULL;
    }
    return j->data + (uint64_t)(first - j->first_gref) * PAGE;
}

int back(struct job *j)
{
    struct uring u;
    struct io_uring_cqe *c;
    int fault = uring_open(&u);
    uint32_t *shared = (uint32_t *)j->ring, req_cons = 0, rsp_prod = 0, pushed, group = (j->depth + 1) / 2;
    while (!fault && rsp_prod < j->operations) {
        uint32_t req_prod = __atomic_load_n(&shared[0], __ATOMIC_ACQUIRE);
        if (req_prod == req_cons && rsp_prod == req_cons) {
            fault = wait_for_requests(j, req_cons);
            continue;
        }
        for (uint32_t n = 0; n < group && req_cons != req_prod; n++) {
            uint8_t *slot = j->ring + RING + (req_cons++ % SLOTS) * SLOT;
            uint64_t id, sector;
            memcpy(&id, slot + 8, 8);
            memcpy(&sector, slot + 16, 8);
            queue(&u, j, id, pages_of(j, slot, id), sector * 512);
        }
        fault = enter(&u, 1);
        for (pushed = rsp_prod; !fault && (c = completed(&u)); rsp_prod++) {
            uint8_t *slot = j->ring + RING + (rsp_prod % SLOTS) * SLOT;
            uint16_t status = c->res == (int)(j->pages * PAGE) ? 0 : 0xffff;
            memset(slot, 0, 16);
            memcpy(slot, &c->user_data, 8);
            memcpy(slot + 10, &status, 2);
        }
        if (!fault && rsp_prod != pushed)
            fault = push(j, pushed, rsp_prod);
    }
    uring_close(&u);
    return fault;
}
