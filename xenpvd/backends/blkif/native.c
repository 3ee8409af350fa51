/* The data plane of one ring without the GIL: ring <-> io_uring, straight into and out of the granted pages.
 *
 * native.py makes a struct plane, and a thread of Python's that calls plane_run() once. Everything in guest
 * memory is hostile: a slot and a table of segments are copied once and checked in the copy, as request.py
 * does, which is the reference; frame numbers are bounded by the guest's RAM before they become addresses.
 * Xen's io/ring.h, io/blkif.h and grant_table.h have the layouts; the constants keep their names.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <poll.h>
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

enum { PAGE = 4096, RING = 64, SECTOR = 512, SECTORS_PER_PAGE = 8, PAGES_MAX = 16 };
enum { REQ_PROD = 0, REQ_EVENT = 4, RSP_PROD = 8, RSP_EVENT = 12 };
enum { BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE = 3, BLKIF_OP_DISCARD = 5, BLKIF_OP_INDIRECT };
enum { BLKIF_RSP_OKAY = 0, BLKIF_RSP_ERROR = -1, BLKIF_RSP_EOPNOTSUPP = -2 };
enum { BLKIF_DISCARD_SECURE = 1, BLKIF_MAX_SEGMENTS_PER_REQUEST = 11, SEGMENTS_MAX = 256 };
enum { GTF_permit_access = 1, GTF_type_mask = 3, GTF_readonly = 4, GTF_reading = 8, GTF_writing = 16 };
enum { GNTST_bad_gntref = -3, GNTST_permission_denied = -8, GNTST_bad_page = -9, GNTST_bad_domain = -2,
       GNTST_eagain = -12 };
enum { GRANT_FRAMES = 64, GRANTS_PER_FRAME = 512, GRANT_TRIES = 5 };

/* Requests taken in one go: the guest works on the first while we work on the next. */
enum { GROUP = 16 };
#define DISCARD_STEP (1ull << 30)
#define NS 1000000000ull

/* Why a request failed; native.py has the words. */
enum trouble { REFUSED_OPERATION = 1, REFUSED_SEGMENTS, REFUSED_SEGMENT, REFUSED_RANGE, REFUSED_ALIGNMENT,
               REFUSED_READONLY, REFUSED_SECURE, REFUSED_EMPTY, REFUSED_FLUSH, REFUSED_INDIRECT, BAD_GRANT, IO };
enum end { STOPPED, RING_BROKEN, OUT_OF_MEMORY, URING_BROKEN };

struct region { uint64_t gfn, pages; uint8_t *address; const uint8_t *gone; };

struct stats {
    uint64_t reads, read_bytes, writes, write_bytes, flushes, discards, errors, in_flight, notifications,
        notifications_suppressed, wakeups, latency_ns, latency[24]; /* counts.py has the buckets */
};

/* Shared with native.py, which fills it in and reads the counters; keep both alike. */
struct plane {
    uint32_t n_regions, n_pages, x86_32, is_block;
    struct region regions[8];
    uint64_t *grant_frames; /* addresses of GRANT_FRAMES frames, 0 where there is none; others change them */
    uint8_t *pages[PAGES_MAX];
    int32_t image_fd, kick_fd, irq_fd, stop_fd;
    uint64_t sectors; /* the offer: may change at any time */
    uint32_t readonly, sector_size, max_indirect, discard;
    int32_t *flush_fault; /* errno of the image's first failed flush, for all of its rings */
    void (*notify)(void);  /* where there is no irq_fd */
    void (*trouble)(int32_t kind, int32_t operation, int64_t a, int64_t b);
    uint64_t trouble_pause, spin_max; /* nanoseconds */
    uint32_t stopping, uses_uring, want_uring, req_cons;
    uint64_t told_at, broken_at;
    struct stats stats;
};

struct request {
    uint64_t id, offset, length, done, begun;
    uint32_t n_grefs, n_iov, first_iov, next;
    int16_t status;
    uint8_t operation;
    uint32_t grefs[SEGMENTS_MAX];
    struct iovec iov[SEGMENTS_MAX];
};

struct uring {
    int fd;
    uint32_t *sq_head, *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    uint32_t to_submit, entries;
    int fault; /* errno of what must not happen */
    void *sq_ring, *cq_ring;
    size_t sq_size, cq_size, sqes_size;
};

struct run {
    struct plane *p;
    struct uring ring;
    struct request *requests;
    uint32_t size, slot_size, free, rsp_prod_pvt, rsp_prod, in_flight;
    bool kick_armed, stop_armed, wrote;
    uint64_t spin;
};

#define load(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define bump(p, n) store((p), load(p) + (n))

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

static uint32_t shared(struct plane *p, uint32_t at)
{
    return __atomic_load_n((uint32_t *)(p->pages[0] + at), __ATOMIC_ACQUIRE);
}

/* At most once in a while: whoever is told takes the GIL. */
static void tell(struct plane *p, enum trouble kind, int operation, int64_t a, int64_t b)
{
    bump(&p->stats.errors, 1);
    uint64_t at = now();
    if (p->told_at && at - p->told_at < p->trouble_pause)
        return;
    p->told_at = at;
    p->trouble(kind, operation, a, b);
}

/* ---- grants */

static uint64_t *grant_entry(struct plane *p, uint32_t gref)
{
    if (gref / GRANTS_PER_FRAME >= GRANT_FRAMES)
        return NULL;
    uint64_t frame = __atomic_load_n(&p->grant_frames[gref / GRANTS_PER_FRAME], __ATOMIC_ACQUIRE);
    return frame ? (uint64_t *)frame + gref % GRANTS_PER_FRAME : NULL;
}

static uint8_t *ram(struct plane *p, uint64_t gfn)
{
    for (uint32_t n = 0; n < p->n_regions; n++) {
        struct region *r = &p->regions[n];
        uint64_t index = gfn - r->gfn;
        if (gfn >= r->gfn && index < r->pages) {
            if (r->gone && load(&r->gone[index / 8]) >> index % 8 & 1)
                return NULL;
            return r->address + index * PAGE;
        }
    }
    return NULL;
}

/* Mark the entry as in use, and give the page; NULL with *status, a GNTST_*. */
static uint8_t *claim(struct plane *p, uint32_t gref, bool readonly, int *status)
{
    uint64_t *entry = grant_entry(p, gref);
    *status = GNTST_bad_gntref;
    if (!entry)
        return NULL;
    uint16_t wanted = readonly ? GTF_reading : GTF_reading | GTF_writing;
    for (int n = 0; n < GRANT_TRIES; n++) {
        uint64_t seen = __atomic_load_n(entry, __ATOMIC_ACQUIRE);
        uint16_t flags = (uint16_t)seen;
        uint8_t *page;
        *status = GNTST_bad_gntref;
        if ((flags & GTF_type_mask) != GTF_permit_access)
            return NULL;
        *status = GNTST_bad_domain;
        if ((uint16_t)(seen >> 16))
            return NULL;
        *status = GNTST_permission_denied;
        if (flags & GTF_readonly && !readonly)
            return NULL;
        *status = GNTST_bad_page;
        if (!(page = ram(p, seen >> 32)))
            return NULL;
        if ((flags & wanted) == wanted ||
            __atomic_compare_exchange_n((uint16_t *)entry, &flags, (uint16_t)(flags | wanted), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return page;
    }
    *status = GNTST_eagain;
    return NULL;
}

static void release(struct plane *p, uint32_t gref)
{
    uint16_t *flags = (uint16_t *)grant_entry(p, gref);
    if (flags)
        __atomic_and_fetch(flags, (uint16_t)~(GTF_reading | GTF_writing), __ATOMIC_SEQ_CST);
}

/* ---- io_uring, by its three system calls */

/* Submit, and wait for so many; may do less, as the caller looks again anyway. */
static void enter(struct uring *u, uint32_t wait)
{
    int done = (int)syscall(SYS_io_uring_enter, u->fd, u->to_submit, wait, IORING_ENTER_GETEVENTS, NULL, 0);
    if (done >= 0)
        u->to_submit -= (uint32_t)done;
    else if (errno != EINTR && errno != EAGAIN && errno != EBUSY)
        u->fault = errno;
}

static struct io_uring_sqe *sqe(struct uring *u, uint64_t user_data)
{
    uint32_t tail = *u->sq_tail, index = tail & *u->sq_mask;
    if (tail - __atomic_load_n(u->sq_head, __ATOMIC_ACQUIRE) >= u->entries)
        enter(u, 0);
    struct io_uring_sqe *e = &u->sqes[index];
    memset(e, 0, sizeof *e);
    e->user_data = user_data;
    u->sq_array[index] = index;
    __atomic_store_n(u->sq_tail, tail + 1, __ATOMIC_RELEASE);
    u->to_submit++;
    return e;
}

static void *map(int fd, size_t size, uint64_t at)
{
    void *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)at);
    return area == MAP_FAILED ? NULL : area;
}

static void uring_close(struct uring *u)
{
    if (u->sqes)
        munmap(u->sqes, u->sqes_size);
    if (u->cq_ring)
        munmap(u->cq_ring, u->cq_size);
    if (u->sq_ring)
        munmap(u->sq_ring, u->sq_size);
    if (u->fd >= 0)
        close(u->fd);
    memset(u, 0, sizeof *u);
    u->fd = -1;
}

static bool uring_open(struct uring *u, uint32_t entries)
{
    static const uint32_t flags[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0};
    struct io_uring_params params;
    u->fd = -1;
    for (size_t n = 0; n < sizeof flags / sizeof *flags && u->fd < 0; n++) {
        memset(&params, 0, sizeof params);
        params.flags = flags[n] | IORING_SETUP_CLAMP;
        u->fd = (int)syscall(SYS_io_uring_setup, entries, &params);
    }
    if (u->fd < 0)
        return false;
    fcntl(u->fd, F_SETFD, FD_CLOEXEC);
    u->entries = params.sq_entries;
    u->sq_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    u->cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    u->sqes_size = params.sq_entries * sizeof(struct io_uring_sqe);
    u->sq_ring = map(u->fd, u->sq_size, IORING_OFF_SQ_RING);
    u->cq_ring = map(u->fd, u->cq_size, IORING_OFF_CQ_RING);
    u->sqes = map(u->fd, u->sqes_size, IORING_OFF_SQES);
    if (!u->sq_ring || !u->cq_ring || !u->sqes) {
        uring_close(u);
        return false;
    }
    uint8_t *sq = u->sq_ring, *cq = u->cq_ring;
    u->sq_head = (uint32_t *)(sq + params.sq_off.head);
    u->sq_tail = (uint32_t *)(sq + params.sq_off.tail);
    u->sq_mask = (uint32_t *)(sq + params.sq_off.ring_mask);
    u->sq_array = (uint32_t *)(sq + params.sq_off.array);
    u->cq_head = (uint32_t *)(cq + params.cq_off.head);
    u->cq_tail = (uint32_t *)(cq + params.cq_off.tail);
    u->cq_mask = (uint32_t *)(cq + params.cq_off.ring_mask);
    u->cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    return true;
}

/* ---- the ring with the guest */

/* What was copied from the guest is looked at in the copy only: the compiler must not read it again (XSA-155). */
#define copied() __asm__ volatile("" ::: "memory")

/* Copy between a slot and private memory; it may begin in one page and end in the next. */
static void slot_copy(struct run *r, uint32_t index, uint8_t *data, uint32_t length, bool out)
{
    uint32_t at = RING + (index & (r->size - 1)) * r->slot_size, straight = PAGE - at % PAGE;
    uint8_t **pages = r->p->pages;
    if (straight > length)
        straight = length;
    uint8_t *first = pages[at / PAGE] + at % PAGE;
    if (out)
        memcpy(first, data, straight);
    else
        memcpy(data, first, straight);
    if (straight < length) {
        if (out)
            memcpy(pages[at / PAGE + 1], data + straight, length - straight);
        else
            memcpy(data + straight, pages[at / PAGE + 1], length - straight);
    }
    copied();
}

/* How many requests wait; -1 if that cannot be true. */
static int unconsumed(struct run *r)
{
    uint32_t req_prod = shared(r->p, REQ_PROD), count = req_prod - r->p->req_cons;
    if (count > r->size - (r->p->req_cons - r->rsp_prod_pvt)) {
        r->p->broken_at = req_prod;
        return -1;
    }
    return (int)count;
}

static void respond(struct run *r, uint64_t id, uint8_t operation, int16_t status)
{
    uint8_t raw[16] = {0};
    memcpy(raw, &id, 8);
    raw[8] = operation;
    memcpy(raw + 10, &status, 2);
    slot_copy(r, r->rsp_prod_pvt++, raw, r->p->x86_32 ? 12 : 16, true);
}

static void push(struct run *r)
{
    uint32_t old = r->rsp_prod, new = r->rsp_prod_pvt;
    if (old == new)
        return;
    __atomic_store_n((uint32_t *)(r->p->pages[0] + RSP_PROD), new, __ATOMIC_RELEASE);
    r->rsp_prod = new;
    /* the guest must see rsp_prod before we read rsp_event, or both sides may go to sleep */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (new - shared(r->p, RSP_EVENT) >= new - old) {
        bump(&r->p->stats.notifications_suppressed, 1);
        return;
    }
    bump(&r->p->stats.notifications, 1);
    uint64_t one = 1;
    if (r->p->irq_fd < 0)
        r->p->notify();
    else if (write(r->p->irq_fd, &one, 8) < 0)
        return; /* it is full: it will be seen anyway */
}

/* ---- requests */

static void done(struct run *r, struct request *q)
{
    struct plane *p = r->p;
    for (uint32_t n = 0; n < q->n_grefs; n++)
        release(p, q->grefs[n]);
    if (q->status == BLKIF_RSP_OKAY) {
        if (q->operation == BLKIF_OP_READ) {
            bump(&p->stats.reads, 1);
            bump(&p->stats.read_bytes, q->length);
        } else if (q->operation == BLKIF_OP_WRITE) {
            bump(&p->stats.writes, 1);
            bump(&p->stats.write_bytes, q->length);
        } else {
            bump(q->operation == BLKIF_OP_DISCARD ? &p->stats.discards : &p->stats.flushes, 1);
        }
    }
    uint64_t ns = now() - q->begun, us = ns / 1000, bucket = us ? 64 - (uint64_t)__builtin_clzll(us) : 0;
    bump(&p->stats.latency[bucket < 23 ? bucket : 23], 1);
    bump(&p->stats.latency_ns, ns);
    respond(r, q->id, q->operation, q->status);
    q->next = r->free;
    r->free = (uint32_t)(q - r->requests);
    store(&p->stats.in_flight, --r->in_flight);
}

static void fail(struct run *r, struct request *q, int number)
{
    if (q->operation == BLKIF_OP_FLUSH_DISKCACHE && !load(r->p->flush_fault))
        store(r->p->flush_fault, number);
    tell(r->p, IO, q->operation, number, (int64_t)(q->offset + q->done));
    q->status = BLKIF_RSP_ERROR;
    done(r, q);
}

static uint64_t step(const struct request *q)
{
    uint64_t left = q->length - q->done;
    return left < DISCARD_STEP ? left : DISCARD_STEP;
}

static void start(struct run *r, struct request *q);

/* The kernel has transferred ``result`` bytes, or failed with its negative. */
static void advance(struct run *r, struct request *q, int64_t result)
{
    if (result == -EINTR || result == -EAGAIN) {
        start(r, q);
        return;
    }
    if (result < 0) {
        fail(r, q, (int)-result);
        return;
    }
    if (q->operation == BLKIF_OP_FLUSH_DISKCACHE) {
        done(r, q);
        return;
    }
    if (q->operation == BLKIF_OP_DISCARD)
        result = (int64_t)step(q);
    if (result == 0) { /* a file that has become too short; a device that takes no more */
        fail(r, q, EIO);
        return;
    }
    q->done += (uint64_t)result;
    bool cut_short = q->operation == BLKIF_OP_DISCARD && load(&r->p->stopping); /* it is advice */
    if (q->done >= q->length || cut_short) {
        done(r, q);
        return;
    }
    while (result > 0 && q->operation != BLKIF_OP_DISCARD) {
        struct iovec *v = &q->iov[q->first_iov];
        if ((uint64_t)result < v->iov_len) {
            v->iov_base = (uint8_t *)v->iov_base + result;
            v->iov_len -= (size_t)result;
            break;
        }
        result -= (int64_t)v->iov_len;
        q->first_iov++;
    }
    start(r, q);
}

static int64_t carry_out(struct run *r, struct request *q)
{
    int fd = r->p->image_fd;
    off_t at = (off_t)(q->offset + q->done);
    int64_t result;
    do {
        struct iovec *iov = q->iov + q->first_iov;
        int count = (int)(q->n_iov - q->first_iov);
        uint64_t range[2] = {(uint64_t)at, step(q)};
        if (q->operation == BLKIF_OP_READ)
            result = preadv(fd, iov, count, at);
        else if (q->operation == BLKIF_OP_WRITE)
            result = pwritev(fd, iov, count, at);
        else if (q->operation == BLKIF_OP_FLUSH_DISKCACHE)
            result = fd < 0 ? 0 : fdatasync(fd);
        else if (r->p->is_block)
            result = ioctl(fd, BLKDISCARD, range);
        else
            result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, (off_t)range[1]);
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

/* Begin, or go on with, what is checked. */
static void start(struct run *r, struct request *q)
{
    struct plane *p = r->p;
    if (q->operation == BLKIF_OP_WRITE && !p->is_block) {
        struct stat found; /* a write must not make a file grow that somebody has truncated */
        if (fstat(p->image_fd, &found) == 0 && (uint64_t)found.st_size < q->offset + q->length) {
            fail(r, q, EIO);
            return;
        }
    }
    if (q->operation == BLKIF_OP_FLUSH_DISKCACHE && load(p->flush_fault)) {
        fail(r, q, load(p->flush_fault));
        return;
    }
    if (!p->uses_uring || (q->operation == BLKIF_OP_DISCARD && p->is_block) || p->image_fd < 0) {
        advance(r, q, carry_out(r, q));
        return;
    }
    struct io_uring_sqe *e = sqe(&r->ring, (uint64_t)(q - r->requests));
    e->fd = p->image_fd;
    e->off = q->offset + q->done;
    switch (q->operation) {
    case BLKIF_OP_READ:
    case BLKIF_OP_WRITE:
        e->opcode = q->operation == BLKIF_OP_READ ? IORING_OP_READV : IORING_OP_WRITEV;
        e->addr = (uint64_t)(q->iov + q->first_iov);
        e->len = q->n_iov - q->first_iov;
        break;
    case BLKIF_OP_FLUSH_DISKCACHE:
        e->opcode = IORING_OP_FSYNC;
        e->fsync_flags = IORING_FSYNC_DATASYNC;
        e->off = 0;
        break;
    default:
        e->opcode = IORING_OP_FALLOCATE;
        e->len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        e->addr = step(q);
    }
}

static void refuse(struct run *r, uint64_t id, uint8_t operation, int16_t status, enum trouble why, int64_t a,
                   int64_t b)
{
    tell(r->p, why, operation, a, b);
    respond(r, id, operation, status);
}

/* True if it is refused, and answered. */
static bool out_of_range(struct run *r, uint64_t id, uint8_t operation, uint64_t sector, uint64_t count)
{
    struct plane *p = r->p;
    uint64_t sectors = load(&p->sectors);
    if (count > sectors || sector > sectors - count)
        refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_RANGE, (int64_t)sector, (int64_t)count);
    else if ((sector | count) % (p->sector_size / SECTOR))
        refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_ALIGNMENT, (int64_t)sector, (int64_t)count);
    else
        return false;
    return true;
}

static struct request *begin(struct run *r, uint64_t id, uint8_t operation, uint64_t sector, uint64_t count)
{
    struct request *q = &r->requests[r->free];
    r->free = q->next;
    store(&r->p->stats.in_flight, ++r->in_flight);
    q->id = id;
    q->operation = operation;
    q->status = BLKIF_RSP_OKAY;
    q->offset = sector * SECTOR;
    q->length = count * SECTOR;
    q->done = q->n_grefs = q->n_iov = q->first_iov = 0;
    q->begun = now();
    return q;
}

/* ``table`` is a private copy of ``nr`` segments of 8 bytes. */
static void transfer(struct run *r, uint64_t id, uint8_t operation, uint64_t sector, const uint8_t *table,
                     uint32_t nr)
{
    struct plane *p = r->p;
    uint32_t unit = p->sector_size / SECTOR, count = 0;
    if (operation == BLKIF_OP_WRITE && load(&p->readonly)) {
        refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_READONLY, 0, 0);
        return;
    }
    for (uint32_t n = 0; n < nr; n++) {
        uint32_t first = table[8 * n + 4], last = table[8 * n + 5];
        if (first > last || last >= SECTORS_PER_PAGE || first % unit || (last + 1) % unit) {
            refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_SEGMENT, first, last);
            return;
        }
        count += last + 1 - first;
    }
    if (out_of_range(r, id, operation, sector, count))
        return;
    struct request *q = begin(r, id, operation, sector, count);
    for (uint32_t n = 0; n < nr; n++) {
        uint32_t gref, first = table[8 * n + 4], last = table[8 * n + 5];
        int status;
        memcpy(&gref, table + 8 * n, 4);
        uint8_t *page = claim(p, gref, operation == BLKIF_OP_WRITE, &status);
        if (!page) {
            tell(p, BAD_GRANT, operation, gref, status);
            q->status = BLKIF_RSP_ERROR;
            done(r, q);
            return;
        }
        q->grefs[q->n_grefs++] = gref;
        uint8_t *from = page + first * SECTOR;
        size_t length = (last + 1 - first) * SECTOR;
        struct iovec *before = q->n_iov ? &q->iov[q->n_iov - 1] : NULL;
        if (before && (uint8_t *)before->iov_base + before->iov_len == from)
            before->iov_len += length;
        else
            q->iov[q->n_iov++] = (struct iovec){from, length};
    }
    r->wrote |= operation == BLKIF_OP_WRITE;
    start(r, q);
}

static void take_indirect(struct run *r, const uint8_t *slot)
{
    struct plane *p = r->p;
    uint32_t shift = p->x86_32 ? 0 : 4, left;
    uint8_t operation = slot[1], table[SEGMENTS_MAX * 8];
    uint16_t nr;
    uint64_t id, sector;
    uint32_t gref;
    int status;
    memcpy(&nr, slot + 2, 2);
    memcpy(&id, slot + 4 + shift, 8);
    memcpy(&sector, slot + 12 + shift, 8);
    memcpy(&gref, slot + 24 + shift, 4); /* SEGMENTS_MAX are in one page */
    if (operation != BLKIF_OP_READ && operation != BLKIF_OP_WRITE) {
        refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_INDIRECT, operation, 0);
        return;
    }
    left = load(&p->max_indirect);
    if (!nr || nr > left || nr > SEGMENTS_MAX) {
        refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_SEGMENTS, nr, 0);
        return;
    }
    uint8_t *page = claim(p, gref, true, &status);
    if (!page) {
        tell(p, BAD_GRANT, operation, gref, status);
        respond(r, id, operation, BLKIF_RSP_ERROR);
        return;
    }
    memcpy(table, page, nr * 8u);
    copied();
    release(p, gref);
    transfer(r, id, operation, sector, table, nr);
}

static void take_discard(struct run *r, const uint8_t *slot)
{
    struct plane *p = r->p;
    uint32_t shift = p->x86_32 ? 0 : 4;
    uint64_t id, sector, count;
    memcpy(&id, slot + 4 + shift, 8);
    memcpy(&sector, slot + 12 + shift, 8);
    memcpy(&count, slot + 20 + shift, 8);
    uint8_t operation = BLKIF_OP_DISCARD;
    if (load(&p->readonly)) {
        refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_READONLY, 0, 0);
    } else if (slot[1] & BLKIF_DISCARD_SECURE) {
        refuse(r, id, operation, BLKIF_RSP_EOPNOTSUPP, REFUSED_SECURE, 0, 0);
    } else if (!count) {
        refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_EMPTY, 0, 0);
    } else if (!out_of_range(r, id, operation, sector, count)) {
        r->wrote = true;
        start(r, begin(r, id, operation, sector, count));
    }
}

static void take(struct run *r)
{
    struct plane *p = r->p;
    uint8_t slot[112];
    uint32_t shift = p->x86_32 ? 0 : 4;
    uint64_t id, sector;
    slot_copy(r, p->req_cons, slot, r->slot_size, false);
    store(&p->req_cons, p->req_cons + 1);
    uint8_t operation = slot[0], nr = slot[1];
    memcpy(&id, slot + 4 + shift, 8);
    memcpy(&sector, slot + 12 + shift, 8);
    if (operation == BLKIF_OP_READ || operation == BLKIF_OP_WRITE) {
        if (!nr || nr > BLKIF_MAX_SEGMENTS_PER_REQUEST)
            refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_SEGMENTS, nr, 0);
        else
            transfer(r, id, operation, sector, slot + 20 + shift, nr);
    } else if (operation == BLKIF_OP_FLUSH_DISKCACHE) {
        if (nr)
            refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_FLUSH, nr, 0);
        else
            start(r, begin(r, id, operation, 0, 0));
    } else if (operation == BLKIF_OP_DISCARD && load(&p->discard)) {
        take_discard(r, slot);
    } else if (operation == BLKIF_OP_INDIRECT && load(&p->max_indirect)) {
        take_indirect(r, slot);
    } else {
        refuse(r, id, operation, BLKIF_RSP_EOPNOTSUPP, REFUSED_OPERATION, operation, 0);
    }
}

/* ---- the loop */

enum { KICK = ~0u, STOP = ~0u - 1 };

static bool reap(struct run *r)
{
    struct uring *u = &r->ring;
    bool any = false;
    if (!r->p->uses_uring)
        return false;
    uint32_t head = *u->cq_head;
    while (head != __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE)) {
        struct io_uring_cqe cqe = u->cqes[head & *u->cq_mask];
        __atomic_store_n(u->cq_head, ++head, __ATOMIC_RELEASE);
        any = true;
        if (cqe.user_data == KICK)
            r->kick_armed = false;
        else if (cqe.user_data == STOP)
            r->stop_armed = false;
        else
            advance(r, &r->requests[cqe.user_data], cqe.res);
    }
    return any;
}

static void drain(int fd)
{
    uint64_t count;
    if (read(fd, &count, 8) < 0)
        return; /* nobody has kicked: it was something else */
}

static void arm(struct run *r, int fd, uint32_t which, bool *armed)
{
    if (!*armed) {
        struct io_uring_sqe *e = sqe(&r->ring, which);
        e->opcode = IORING_OP_POLL_ADD;
        e->fd = fd;
        e->poll32_events = POLLIN;
        *armed = true;
    }
}

static void sleep_until_kicked(struct run *r)
{
    struct plane *p = r->p;
    bump(&p->stats.wakeups, 1);
    if (r->in_flight) { /* whichever comes first, a kick or a completion; without io_uring nothing is in flight */
        arm(r, p->kick_fd, KICK, &r->kick_armed);
        if (!load(&p->stopping))
            arm(r, p->stop_fd, STOP, &r->stop_armed);
        enter(&r->ring, 1);
    } else {
        struct pollfd fds[2] = {{p->kick_fd, POLLIN, 0}, {p->stop_fd, POLLIN, 0}};
        poll(fds, 2, -1);
    }
    drain(p->kick_fd);
}

/* Asked before sleeping: are there requests after all? If not, the guest kicks at its very next one. */
static int final_check(struct run *r)
{
    int count = unconsumed(r);
    if (count)
        return count;
    __atomic_store_n((uint32_t *)(r->p->pages[0] + REQ_EVENT), r->p->req_cons + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* before we look again, or a request may come in between */
    return unconsumed(r);
}

/* Look a while longer before sleeping, as long as that has paid off lately. */
static bool spin(struct run *r)
{
    if (!r->spin)
        return false;
    uint64_t until = now() + r->spin, max = r->p->spin_max;
    do {
        if (unconsumed(r)) {
            r->spin = r->spin * 2 < max ? r->spin * 2 : max;
            return true;
        }
        __builtin_ia32_pause();
    } while (now() < until);
    r->spin = r->spin / 2 > max / 16 ? r->spin / 2 : max / 16;
    return false;
}

static int serve(struct run *r)
{
    struct plane *p = r->p;
    for (;;) {
        bool busy = reap(r), stopping = false;
        for (int n = 0; n < GROUP && !(stopping = load(&p->stopping)); n++) {
            int count = unconsumed(r);
            if (count < 0)
                return RING_BROKEN;
            if (!count)
                break;
            take(r);
            busy = true;
        }
        if (r->ring.to_submit)
            enter(&r->ring, 0);
        busy |= reap(r);
        push(r);
        if (r->ring.fault) {
            p->broken_at = (uint64_t)r->ring.fault;
            return URING_BROKEN;
        }
        if (busy)
            continue;
        if (stopping) {
            if (!r->in_flight)
                return STOPPED;
        } else if (!(r->in_flight == 0 && spin(r))) {
            int count = final_check(r);
            if (count < 0)
                return RING_BROKEN;
            if (count)
                continue;
        } else {
            continue;
        }
        sleep_until_kicked(r);
    }
}

static void finish(struct run *r)
{
    while (r->in_flight && !r->ring.fault) {
        if (r->p->uses_uring)
            enter(&r->ring, 1);
        reap(r);
    }
    push(r);
    if (r->wrote && r->p->image_fd >= 0) {
        struct request q = {.operation = BLKIF_OP_FLUSH_DISKCACHE};
        int64_t result = load(r->p->flush_fault) ? -load(r->p->flush_fault) : carry_out(r, &q);
        if (result < 0) {
            store(r->p->flush_fault, (int32_t)-result);
            tell(r->p, IO, BLKIF_OP_FLUSH_DISKCACHE, -result, 0);
        }
    }
}

size_t plane_size(void)
{
    return sizeof(struct plane);
}

/* The whole life of a plane's thread. ``rsp_prod`` is where the ring begins. */
int plane_run(struct plane *p, uint32_t rsp_prod)
{
    struct run r = {.p = p, .rsp_prod_pvt = rsp_prod, .rsp_prod = rsp_prod};
    r.slot_size = p->x86_32 ? 108 : 112;
    r.size = 1u << (31 - __builtin_clz((p->n_pages * PAGE - RING) / r.slot_size));
    r.spin = p->spin_max;
    r.ring.fd = -1;
    store(&p->req_cons, rsp_prod);
    r.requests = calloc(r.size, sizeof *r.requests);
    if (!r.requests)
        return OUT_OF_MEMORY;
    for (uint32_t n = 0; n < r.size; n++)
        r.requests[n].next = n + 1;
    p->uses_uring = p->want_uring && uring_open(&r.ring, r.size + 8);
    int end = serve(&r);
    finish(&r);
    uring_close(&r.ring);
    free(r.requests);
    return end;
}
