/* The data plane of one ring without the GIL: ring <-> io_uring, straight into and out of the granted pages
 * (or ring <-> virtqueue, see vhost.h).
 *
 * native.py makes a struct plane, and a thread of Python's that calls plane_run() once. Everything in guest
 * memory is hostile: a slot and a table of segments are copied once and checked in the copy, as request.py
 * does, which is the reference; frame numbers are bounded by the guest's RAM before they become addresses.
 * Xen's io/ring.h, io/blkif.h and grant_table.h have the layouts; the constants keep their names.
 */
#include "requests.h"

enum { KICK = ~0u, STOP = ~0u - 1 };

static bool reap(struct run *r)
{
    struct uring *u = &r->ring;
    bool any = false;
    r->at = now();
    if (r->p->vhost)
        return vq_reap(r);
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
        else if (&r->requests[cqe.user_data] == r->flushing)
            flush_ended(r, cqe.res);
        else if (advance(r, &r->requests[cqe.user_data], cqe.res))
            start(r, &r->requests[cqe.user_data]);
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

/* Until a kick, an answer, or news of the engine. */
static void sleep_until_called(struct run *r, bool stopping)
{
    struct plane *p = r->p;
    struct pollfd fds[3] = {{p->vhost->call_fd, POLLIN, 0}, {p->kick_fd, POLLIN, 0}, {p->stop_fd, POLLIN, 0}};
    if (vq_arm(r))
        poll(fds, stopping ? 2 : 3, -1);
    drain(p->vhost->call_fd);
}

/* A stop that ``stopping`` does not know of yet is one of the calls. */
static void sleep_until_kicked(struct run *r, bool stopping)
{
    struct plane *p = r->p;
    bump(&p->stats.wakeups, 1);
    if (p->vhost) {
        sleep_until_called(r, stopping);
    } else if (r->in_flight) { /* whichever comes first, a kick or a completion; without io_uring nothing is in flight */
        arm(r, p->kick_fd, KICK, &r->kick_armed);
        if (!stopping)
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

/* Look a while longer before sleeping; how long follows from how long there was nothing to do lately. */
static bool spin(struct run *r, uint64_t since)
{
    while (now() - since < r->spin) {
        if (unconsumed(r))
            return true;
        __builtin_ia32_pause();
    }
    return false;
}

/* To spin would have paid off, or not. */
static void learn(struct run *r, uint64_t waited)
{
    r->spin = waited < r->p->spin_max ? r->p->spin_max : r->spin / 2;
}

/* How many requests to take before they are answered: half of those that the guest has out at a time, so that it
 * is told seldom, and has put new ones there by the time that the other half is done. */
static int group(struct run *r)
{
    int waiting = unconsumed(r);
    uint32_t out = r->in_flight + (waiting > 0 ? (uint32_t)waiting : 0);
    r->depth = out >= r->depth ? out : r->depth - (r->depth - out + 7) / 8; /* it goes down slowly */
    return r->depth < 2 * GROUP ? ((int)r->depth + 1) / 2 + !r->depth : GROUP;
}

static int serve(struct run *r)
{
    struct plane *p = r->p;
    for (;;) {
        bool busy = reap(r), stopping = false, took = false;
        for (int n = group(r); n && !(stopping = load(&p->stopping)); n--) {
            int count = unconsumed(r);
            if (count < 0)
                return RING_BROKEN;
            if (!count)
                break;
            take(r);
            busy = took = true;
        }
        if (r->ring.to_submit || (took && p->uses_uring && r->in_flight))
            enter(&r->ring, 0); /* which is also where the kernel puts what it has done */
        if (p->vhost)
            vq_kick(r);
        busy |= reap(r);
        push(r);
        if (r->ring.fault) {
            p->broken_at = (uint64_t)r->ring.fault;
            return URING_BROKEN;
        }
        if (busy)
            continue;
        uint64_t since = r->in_flight ? 0 : now(); /* that it is for the guest to go on */
        if (stopping) {
            if (!r->in_flight)
                return STOPPED;
        } else {
            if (since && spin(r, since))
                continue;
            int count = final_check(r);
            if (count < 0)
                return RING_BROKEN;
            if (count)
                continue;
        }
        sleep_until_kicked(r, stopping);
        if (since)
            learn(r, now() - since);
    }
}

/* Wait for all that is under way. */
static void settle(struct run *r)
{
    while (r->in_flight && !r->ring.fault) {
        if (r->p->uses_uring)
            enter(&r->ring, 1);
        if (r->p->vhost) {
            vq_kick(r);
            if (reap(r))
                continue;
            struct pollfd call = {r->p->vhost->call_fd, POLLIN, 0};
            if (vq_arm(r))
                poll(&call, 1, -1);
            drain(call.fd);
        }
        reap(r);
    }
}

static void finish(struct run *r)
{
    settle(r);
    push(r);
    if (r->wrote && r->p->vhost) {
        struct request *q = begin(r, 0, BLKIF_OP_FLUSH_DISKCACHE, 0, 0);
        q->ours = true;
        start(r, q);
        settle(r);
    } else if (r->wrote && r->p->image_fd >= 0) {
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

size_t vhost_size(void)
{
    return sizeof(struct vhost);
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
    if (p->vhost && !(r.vq = calloc(1, sizeof *r.vq))) {
        free(r.requests);
        return OUT_OF_MEMORY;
    }
    p->uses_uring = p->want_uring && !p->vhost && uring_open(&r.ring, r.size + 8, p->image_fd);
    int end = serve(&r);
    finish(&r);
    uring_close(&r.ring);
    if (p->vhost)
        p->vhost->used = r.vq->used;
    free(r.vq);
    free(r.requests);
    return end;
}
