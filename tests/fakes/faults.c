/* c/native.c, in which the Nth call of a name fails, or a test steps in at it, or transfers are cut short: see
 * faults.py.
 *
 * What io_uring has done is a call, too: its completion fails; and so is a transfer of "nothing". So are those at
 * which a test can only step in: a "sync" that begins, by whichever call, a "fence", a "copy" out of the guest's
 * memory that has been made, and a "swap" of a grant's flags that is about to be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EVERY UINT32_MAX

struct faults {
    char call[32];           /* the name of the one that fails */
    uint32_t calls, fail_at; /* of it; 1: the first, 0: none, EVERY */
    int32_t number;          /* errno; 0: it does not fail */
    uint32_t most;           /* bytes that a transfer may have; 0: any */
    uint32_t synced;         /* writes that wait for stable storage */
    uint32_t discard_us;     /* what a discard of a block device takes; it is done then */
    void (*then)(void);      /* what happens at it, in the plane's thread */
    uint64_t ram, ram_size;  /* the guest's memory, for "copy" */
} faults;

static uint8_t *sq, *cq;
static struct io_uring_sqe *sqes;
static struct io_sqring_offsets sq_at;
static struct io_cqring_offsets cq_at;
static uint32_t cq_seen;

static struct iovec shorter[1024];

/* The first of ``iov``, as much of it as there may be; kept by ``n``, as io_uring may look at it later. */
static const struct iovec *shorten(const struct iovec *iov, uint64_t n)
{
    struct iovec *first = &shorter[n % 1024];
    *first = *iov;
    if (first->iov_len > faults.most)
        first->iov_len = faults.most;
    return first;
}

static bool fails(const char *name)
{
    if (strcmp(name, faults.call) || (++faults.calls != faults.fail_at && faults.fail_at != EVERY))
        return false;
    if (faults.then)
        faults.then();
    if (!faults.number)
        return false;
    errno = faults.number;
    return true;
}

static void look_at_submitted(uint32_t count)
{
    uint32_t tail = *(uint32_t *)(sq + sq_at.tail), mask = *(uint32_t *)(sq + sq_at.ring_mask);
    for (uint32_t index = tail - count; index != tail; index++) {
        struct io_uring_sqe *e = sqes + (index & mask);
        bool table = e->opcode == IORING_OP_READV || e->opcode == IORING_OP_WRITEV;
        bool write = e->opcode == IORING_OP_WRITE || e->opcode == IORING_OP_WRITEV;
        faults.synced += write && e->rw_flags & RWF_DSYNC;
        if (e->opcode == IORING_OP_FSYNC)
            fails("sync");
        if (faults.most && table) {
            e->addr = (uint64_t)shorten((const struct iovec *)e->addr, e->user_data);
            e->len = 1;
        } else if (faults.most && (write || e->opcode == IORING_OP_READ) && e->len > faults.most) {
            e->len = faults.most;
        }
    }
}

static void look_at_completed(void)
{
    uint32_t tail = __atomic_load_n((uint32_t *)(cq + cq_at.tail), __ATOMIC_ACQUIRE);
    uint32_t mask = *(uint32_t *)(cq + cq_at.ring_mask);
    for (; cq_seen != tail; cq_seen++) {
        struct io_uring_cqe *c = (struct io_uring_cqe *)(cq + cq_at.cqes) + (cq_seen & mask);
        if (c->user_data > 1u << 20) /* a kick, a stop */
            continue;
        if (fails("completion"))
            c->res = -faults.number;
        if (fails("nothing"))
            c->res = 0;
    }
}

static long faulty_syscall(long number, ...)
{
    va_list args;
    long result;
    va_start(args, number);
    if (number == SYS_io_uring_setup) {
        unsigned entries = va_arg(args, unsigned);
        struct io_uring_params *params = va_arg(args, struct io_uring_params *);
        result = fails("io_uring_setup") ? -1 : syscall(number, entries, params);
        sq_at = params->sq_off;
        cq_at = params->cq_off;
        cq_seen = 0;
    } else if (number == SYS_io_uring_register) {
        int fd = va_arg(args, int);
        unsigned what = va_arg(args, unsigned);
        void *files = va_arg(args, void *);
        result = fails("io_uring_register") ? -1 : syscall(number, fd, what, files, va_arg(args, unsigned));
    } else {
        int fd = va_arg(args, int);
        unsigned submit = va_arg(args, unsigned), wait = va_arg(args, unsigned), flags = va_arg(args, unsigned);
        if (fails("io_uring_enter"))
            return -1;
        look_at_submitted(submit);
        result = syscall(number, fd, submit, wait, flags, NULL, 0);
        int fault = errno;
        look_at_completed();
        errno = fault;
    }
    va_end(args);
    return result;
}

static void *faulty_mmap(void *at, size_t size, int rights, int flags, int fd, off_t offset)
{
    if (fails("mmap"))
        return MAP_FAILED;
    void *area = mmap(at, size, rights, flags, fd, offset);
    if (offset == IORING_OFF_SQ_RING)
        sq = area;
    else if ((uint64_t)offset == IORING_OFF_CQ_RING)
        cq = area;
    else if ((uint64_t)offset == IORING_OFF_SQES)
        sqes = area;
    return area;
}

static ssize_t faulty_preadv(int fd, const struct iovec *iov, int count, off_t at)
{
    if (fails("nothing"))
        return 0;
    if (fails("preadv"))
        return -1;
    return faults.most ? preadv(fd, shorten(iov, 0), 1, at) : preadv(fd, iov, count, at);
}

static ssize_t faulty_pwritev2(int fd, const struct iovec *iov, int count, off_t at, int flags)
{
    faults.synced += flags == RWF_DSYNC;
    if (fails("nothing"))
        return 0;
    if (fails("pwritev2"))
        return -1;
    return faults.most ? pwritev2(fd, shorten(iov, 0), 1, at, flags) : pwritev2(fd, iov, count, at, flags);
}

static int faulty_fdatasync(int fd)
{
    fails("sync");
    return fails("fdatasync") ? -1 : fdatasync(fd);
}

static int faulty_fallocate(int fd, int mode, off_t at, off_t length)
{
    return fails("fallocate") ? -1 : fallocate(fd, mode, at, length);
}

/* BLKDISCARD of a file that plays a block device. */
static int faulty_ioctl(int fd, unsigned long request, void *argument)
{
    const uint64_t *range = argument;
    if (faults.discard_us)
        return usleep(faults.discard_us);
    if (fails("ioctl"))
        return -1;
    if (request != BLKDISCARD)
        return ioctl(fd, request, argument);
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)range[0], (off_t)range[1]);
}

static int faulty_fstat(int fd, struct stat *found)
{
    return fails("fstat") ? -1 : fstat(fd, found);
}

static int faulty_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    return fails("poll") ? -1 : poll(fds, count, timeout);
}

static ssize_t faulty_read(int fd, void *data, size_t length)
{
    return fails("read") ? -1 : read(fd, data, length);
}

static ssize_t faulty_write(int fd, const void *data, size_t length)
{
    return fails("write") ? -1 : write(fd, data, length);
}

static void faulty_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    fails("fence");
}

static void *faulty_memcpy(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
    if ((uint64_t)from - faults.ram < faults.ram_size)
        fails("copy");
    return to;
}

static void *faulty_calloc(size_t count, size_t size)
{
    return fails("calloc") ? NULL : calloc(count, size);
}

#define syscall faulty_syscall
#define mmap faulty_mmap
#define preadv faulty_preadv
#define pwritev2 faulty_pwritev2
#define fdatasync faulty_fdatasync
#define fallocate faulty_fallocate
#define ioctl faulty_ioctl
#define fstat faulty_fstat
#define poll faulty_poll
#define read faulty_read
#define write faulty_write
#define memcpy faulty_memcpy
#define __atomic_thread_fence(order) faulty_fence()
#define __atomic_compare_exchange_n(at, ...) (fails("swap"), __atomic_compare_exchange_n(at, __VA_ARGS__))
#define calloc faulty_calloc
#include "native.c"
