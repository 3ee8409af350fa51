/* A frontend for bench/block.py, and the limit that it is held against: the same I/O with no ring in between.
 *
 * front() is the guest's half of xen-block: it keeps ``depth`` requests on the ring, kicks and sleeps as Linux
 * does, and uses indirect requests beyond 11 segments. limit() does the same transfers by io_uring.
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

enum { PAGE = 4096, RING = 64, SLOT = 112, SLOTS = 32, SEGMENTS = 11 };

struct job {
    uint8_t *ring, *data, *tables; /* a page; SLOTS runs of pages; SLOTS pages */
    uint32_t first_gref, table_gref; /* data pages and tables have the references from these on */
    int32_t kick_fd, irq_fd, image_fd;
    uint32_t pages, depth, write, sequential; /* pages of a request */
    uint64_t size, operations;               /* of the image, in bytes; how many requests */
    uint64_t elapsed, cpu;                   /* results: nanoseconds, those of this thread */
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
    uint64_t begun = 0, ended = 0, seed = 88172645463325252ull, one = 1, count;
    uint64_t begin = clock_of(CLOCK_MONOTONIC), cpu = clock_of(CLOCK_THREAD_CPUTIME_ID);
    for (uint32_t n = 0; n < n_free; n++)
        free_ids[n] = n;
    while (ended < j->operations) {
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
    j->elapsed = clock_of(CLOCK_MONOTONIC) - begin;
    j->cpu = clock_of(CLOCK_THREAD_CPUTIME_ID) - cpu;
    return 0;
}

int limit(struct job *j)
{
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int ring = (int)syscall(SYS_io_uring_setup, 64, &params);
    if (ring < 0)
        return errno;
    size_t sq_size = params.sq_off.array + params.sq_entries * 4, sqes_size = params.sq_entries * 64;
    size_t cq_size = params.cq_off.cqes + params.cq_entries * 16;
    int flags = PROT_READ | PROT_WRITE;
    uint8_t *sq = mmap(NULL, sq_size, flags, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    uint8_t *cq = mmap(NULL, cq_size, flags, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqes = mmap(NULL, sqes_size, flags, MAP_SHARED, ring, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED)
        return ENOMEM;
    uint32_t *tail = (uint32_t *)(sq + params.sq_off.tail), mask = params.sq_entries - 1;
    uint32_t *array = (uint32_t *)(sq + params.sq_off.array);
    uint32_t *cq_head = (uint32_t *)(cq + params.cq_off.head), *cq_tail = (uint32_t *)(cq + params.cq_off.tail);
    struct io_uring_cqe *cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    uint32_t free_ids[SLOTS], n_free = j->depth, submit = 0, length = j->pages * PAGE;
    uint64_t begun = 0, ended = 0, seed = 88172645463325252ull;
    uint64_t begin = clock_of(CLOCK_MONOTONIC), cpu = clock_of(CLOCK_THREAD_CPUTIME_ID);
    for (uint32_t n = 0; n < n_free; n++)
        free_ids[n] = n;
    while (ended < j->operations) {
        while (n_free && begun < j->operations) {
            uint32_t id = free_ids[--n_free], at = *tail & mask;
            struct io_uring_sqe *e = &sqes[at];
            memset(e, 0, sizeof *e);
            e->opcode = j->write ? IORING_OP_WRITE : IORING_OP_READ;
            e->fd = j->image_fd;
            e->addr = (uint64_t)(j->data + (uint64_t)id * length);
            e->len = length;
            e->off = next_place(j, &seed, begun++);
            e->user_data = id;
            array[at] = at;
            __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
            submit++;
        }
        int done = (int)syscall(SYS_io_uring_enter, ring, submit, 1, IORING_ENTER_GETEVENTS, NULL, 0);
        if (done < 0)
            return errno;
        submit -= (uint32_t)done;
        uint32_t head = *cq_head;
        for (; head != __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE); ended++) {
            struct io_uring_cqe *c = &cqes[head++ & (params.cq_entries - 1)];
            if (c->res != (int)length)
                return EIO;
            free_ids[n_free++] = (uint32_t)c->user_data;
        }
        __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
    }
    j->elapsed = clock_of(CLOCK_MONOTONIC) - begin;
    j->cpu = clock_of(CLOCK_THREAD_CPUTIME_ID) - cpu;
    munmap(sqes, sqes_size);
    munmap(cq, cq_size);
    munmap(sq, sq_size);
    close(ring);
    return 0;
}
