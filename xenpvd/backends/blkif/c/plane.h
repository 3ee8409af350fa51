/* What a plane is made of, and its numbers. Its parts include each other as a chain of static functions:
 * plane.h, grants.h, uring.h, ring.h, vhost.h, requests.h, and native.c, which runs them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sched.h>
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

/* Requests taken in one go at most: the guest works on the first while we work on the next. */
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

/* Shared with vqueue.py, which fills it in: a queue to a block engine. */
struct vhost {
    uint8_t *memory, *taken; /* of the engine's process that is there now, NULL: none; what is worked with */
    uint64_t base; /* where the engine sees it */
    uint64_t *acked, *flushed; /* of all queues: writes that were answered, and that a flush has covered */
    int32_t kick_fd, call_fd, taken_fd;
    uint32_t given_up, max_discard, used; /* used: how far the user before has come in ``taken`` */
};

/* Shared with native.py, which fills it in and reads the counters; keep both alike. */
struct plane {
    uint32_t n_regions, n_pages, x86_32, is_block;
    uint32_t write_flags; /* RWF_* */
    struct region regions[8];
    uint64_t *grant_frames; /* addresses of GRANT_FRAMES frames, 0 where there is none; others change them */
    uint64_t *grant_uses;   /* how often each reference is used, by everybody: see grants.h */
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
    struct vhost *vhost; /* NULL: the image is a file or a device */
    struct stats stats;
};

struct request {
    uint64_t id, offset, length, done, begun;
    uint32_t n_grefs, n_iov, first_iov, next;
    int16_t status;
    uint8_t operation;
    bool ours; /* no guest has asked for it */
    struct request *after;
    uint32_t grefs[SEGMENTS_MAX];
    struct iovec iov[SEGMENTS_MAX];
};

struct uring {
    int fd;
    uint32_t *sq_head, *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    uint32_t to_submit, entries;
    bool fixed; /* file 0 of this ring is the image */
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
    struct request *flushing, *to_flush; /* with those behind them by their ``after``; see submit_flush() */
    struct vq *vq;
    uint32_t depth; /* how many requests the guest has had out lately; see group() */
    uint64_t spin, at; /* at: the time, as it was a moment ago */
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
