/* io_uring, by its three system calls. */
#include "grants.h"

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
    if (u->fixed && !u->fault) /* or the kernel has the image open for a while longer */
        syscall(SYS_io_uring_register, u->fd, IORING_UNREGISTER_FILES, NULL, 0);
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

static bool uring_open(struct uring *u, uint32_t entries, int32_t image_fd)
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
    u->fixed = syscall(SYS_io_uring_register, u->fd, IORING_REGISTER_FILES, &image_fd, 1) == 0;
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
