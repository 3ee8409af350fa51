/* Requests by a virtqueue to a block engine in another process (vhost-user-blk), instead of by system calls.
 *
 * The data goes through buffers that are shared with the engine and not with the guest: an engine that has lost
 * its way, or that answers when nobody waits for it any more, finds nothing of the guest there. vqueue.py has the
 * layout of the memory, and makes it. When there is other memory, the engine's process is another one: all that
 * is under way is done again, which no guest can tell from a slow disk. In between there is none, for a while. The OASIS virtio standard has the rest.
 */
#include "ring.h"

enum { VQ_SIZE = 512, VQ_SLOTS = 128, VQ_CHUNKS = 128, VQ_CHUNK = 1 << 16 };
enum { AT_DESC = 0, AT_AVAIL = 0x2000, AT_USED = 0x3000, AT_HEADERS = 0x5000, AT_STATUS = 0x6000, AT_DATA = 0x8000 };
enum { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH = 4, VIRTIO_BLK_T_DISCARD = 11 };
enum { VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP };
enum { VRING_DESC_F_NEXT = 1, VRING_DESC_F_WRITE = 2 };

/* A descriptor's number says what it is of: a chunk, a slot's header, a slot's status byte. */
enum { DESC_CHUNK = 0, DESC_HEADER = VQ_CHUNKS, DESC_STATUS = VQ_CHUNKS + VQ_SLOTS };

struct vring_desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct vring_used_elem { uint32_t id, len; };
struct virtio_blk_outhdr { uint32_t type, ioprio; uint64_t sector; };
struct virtio_blk_discard { uint64_t sector; uint32_t num_sectors, flags; };

struct vq_slot { struct request *request; uint64_t covered, moves; uint8_t chunks, chunk[16]; };

struct vq {
    uint8_t *memory;
    uint16_t avail, told, used; /* free-running; told: the avail that the engine has been shown */
    uint32_t free_slots, free_chunks;
    uint8_t slots[VQ_SLOTS], chunks[VQ_CHUNKS]; /* stacks of what is free */
    struct vq_slot slot[VQ_SLOTS];
    struct request *first, *last; /* those that wait for a slot or a chunk, by their ``after`` */
};

static bool advance(struct run *r, struct request *q, int64_t result);
static void fail(struct run *r, struct request *q, int number);
static void start(struct run *r, struct request *q);
static uint64_t step(struct run *r, const struct request *q);

static void vq_reset(struct vq *v, uint8_t *memory, uint16_t used)
{
    v->memory = memory;
    v->avail = v->told = v->used = used;
    v->free_slots = v->free_chunks = 0;
    for (uint32_t n = 0; n < VQ_SLOTS; n++) {
        v->slot[n].request = NULL;
        v->slots[v->free_slots++] = (uint8_t)(VQ_SLOTS - 1 - n);
    }
    for (uint32_t n = 0; n < VQ_CHUNKS; n++)
        v->chunks[v->free_chunks++] = (uint8_t)(VQ_CHUNKS - 1 - n);
}

static uint16_t *vq_u16(struct vq *v, uint32_t at)
{
    return (uint16_t *)(v->memory + at);
}

static void signal_fd(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, 8) < 0)
        return; /* it is full: it will be seen anyway */
}

/* Between the guest's pages and the request's chunks. */
static void vq_copy(struct vq *v, const struct vq_slot *s, bool out)
{
    const struct request *q = s->request;
    uint32_t chunk = 0, at = 0;
    for (uint32_t n = q->first_iov; n < q->n_iov; n++) {
        uint8_t *page = q->iov[n].iov_base;
        size_t left = q->iov[n].iov_len;
        while (left) {
            uint8_t *data = v->memory + AT_DATA + s->chunk[chunk] * VQ_CHUNK + at;
            size_t count = left < VQ_CHUNK - at ? left : VQ_CHUNK - at;
            memcpy(out ? data : page, out ? page : data, count);
            page += count;
            left -= count;
            at += (uint32_t)count;
            if (at == VQ_CHUNK) {
                chunk++;
                at = 0;
            }
        }
    }
}

static void vq_wait(struct vq *v, struct request *q)
{
    q->after = NULL;
    if (v->first)
        v->last->after = q;
    else
        v->first = q;
    v->last = q;
}

/* False if there is no room for it now. */
static bool vq_put(struct run *r, struct request *q)
{
    struct vq *v = r->vq;
    bool moves = q->operation == BLKIF_OP_READ || q->operation == BLKIF_OP_WRITE;
    uint64_t length = moves ? q->length : 0;
    uint32_t needs = q->operation == BLKIF_OP_DISCARD ? 1 : (uint32_t)((length + VQ_CHUNK - 1) / VQ_CHUNK);
    if (!v->memory || !v->free_slots || v->free_chunks < needs)
        return false;
    uint32_t n = v->slots[--v->free_slots];
    struct vq_slot *s = &v->slot[n];
    struct vring_desc *desc = (struct vring_desc *)(v->memory + AT_DESC);
    uint64_t base = r->p->vhost->base;
    struct virtio_blk_outhdr header = {VIRTIO_BLK_T_FLUSH, 0, 0};
    s->request = q;
    s->chunks = (uint8_t)needs;
    s->moves = q->operation == BLKIF_OP_DISCARD ? step(r, q) : length;
    s->covered = __atomic_load_n(r->p->vhost->acked, __ATOMIC_SEQ_CST);
    for (uint32_t i = 0; i < needs; i++)
        s->chunk[i] = v->chunks[--v->free_chunks];
    if (moves) {
        header.type = q->operation == BLKIF_OP_READ ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT;
        header.sector = q->offset / SECTOR;
        if (q->operation == BLKIF_OP_WRITE)
            vq_copy(v, s, true);
    } else if (q->operation == BLKIF_OP_DISCARD) {
        struct virtio_blk_discard range = {(q->offset + q->done) / SECTOR, (uint32_t)(s->moves / SECTOR), 0};
        memcpy(v->memory + AT_DATA + s->chunk[0] * VQ_CHUNK, &range, sizeof range);
        header.type = VIRTIO_BLK_T_DISCARD;
        length = sizeof range;
    }
    memcpy(v->memory + AT_HEADERS + n * sizeof header, &header, sizeof header);
    v->memory[AT_STATUS + n] = VIRTIO_BLK_S_IOERR;
    uint16_t next = (uint16_t)(DESC_STATUS + n);
    desc[next] = (struct vring_desc){base + AT_STATUS + n, 1, VRING_DESC_F_WRITE, 0};
    uint16_t direction = q->operation == BLKIF_OP_READ ? VRING_DESC_F_WRITE : 0;
    for (uint32_t i = needs; i--;) {
        uint64_t begin = (uint64_t)i * VQ_CHUNK, count = length - begin < VQ_CHUNK ? length - begin : VQ_CHUNK;
        uint16_t this = (uint16_t)(DESC_CHUNK + s->chunk[i]);
        desc[this] = (struct vring_desc){base + AT_DATA + s->chunk[i] * VQ_CHUNK, (uint32_t)count,
                                         VRING_DESC_F_NEXT | direction, next};
        next = this;
    }
    desc[DESC_HEADER + n] = (struct vring_desc){base + AT_HEADERS + n * sizeof header, sizeof header,
                                                VRING_DESC_F_NEXT, next};
    *vq_u16(v, AT_AVAIL + 4 + 2 * (v->avail++ % VQ_SIZE)) = (uint16_t)(DESC_HEADER + n);
    return true;
}

/* Begin, or go on with, what is checked. */
static void vq_start(struct run *r, struct request *q)
{
    struct vq *v = r->vq;
    if (load(&r->p->vhost->given_up))
        fail(r, q, EIO);
    else if (v->first || !vq_put(r, q)) /* first come, first served */
        vq_wait(v, q);
}

/* Show the engine what was put there. */
static void vq_kick(struct run *r)
{
    struct vq *v = r->vq;
    uint16_t old = v->told, new = v->avail;
    if (old == new || !v->memory)
        return;
    __atomic_store_n(vq_u16(v, AT_AVAIL + 2), new, __ATOMIC_RELEASE);
    v->told = new;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* before we look whether it sleeps */
    uint16_t event = __atomic_load_n(vq_u16(v, AT_USED + 4 + 8 * VQ_SIZE), __ATOMIC_ACQUIRE);
    if ((uint16_t)(new - event - 1) < (uint16_t)(new - old))
        signal_fd(r->p->vhost->kick_fd);
}

static void vq_answer(struct run *r, struct vq_slot *s, uint8_t status)
{
    struct vq *v = r->vq;
    struct request *q = s->request;
    struct vhost *link = r->p->vhost;
    bool flush = q->operation == BLKIF_OP_FLUSH_DISKCACHE, ok = status == VIRTIO_BLK_S_OK;
    if (ok && q->operation == BLKIF_OP_READ)
        vq_copy(v, s, false);
    if (ok && (q->operation == BLKIF_OP_WRITE || q->operation == BLKIF_OP_DISCARD))
        __atomic_add_fetch(link->acked, 1, __ATOMIC_SEQ_CST);
    uint64_t before = __atomic_load_n(link->flushed, __ATOMIC_RELAXED);
    while (ok && flush && before < s->covered &&
           !__atomic_compare_exchange_n(link->flushed, &before, s->covered, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        continue;
    s->request = NULL;
    for (uint32_t i = 0; i < s->chunks; i++)
        v->chunks[v->free_chunks++] = s->chunk[i];
    v->slots[v->free_slots++] = (uint8_t)(s - v->slot);
    if (advance(r, q, ok ? (int64_t)s->moves : status == VIRTIO_BLK_S_UNSUPP ? -EOPNOTSUPP : -EIO))
        start(r, q);
}

/* Take up other memory, or give everything up. What is in ``taken`` stays mapped until we take another. */
static void vq_renew(struct run *r)
{
    struct vq *v = r->vq;
    struct request *again = v->first;
    for (uint32_t n = 0; n < VQ_SLOTS; n++) {
        if (v->slot[n].request) {
            v->slot[n].request->after = again;
            again = v->slot[n].request;
        }
    }
    v->first = v->last = NULL;
    struct vhost *link = r->p->vhost;
    uint8_t *before = link->taken, *memory = NULL;
    do { /* once more if it has been given up before it was known that we work with it */
        memory = __atomic_load_n(&link->memory, __ATOMIC_SEQ_CST);
        __atomic_store_n(&link->taken, memory, __ATOMIC_SEQ_CST);
    } while (memory != __atomic_load_n(&link->memory, __ATOMIC_SEQ_CST));
    vq_reset(v, memory, memory && memory == before ? (uint16_t)link->used : 0);
    signal_fd(link->taken_fd);
    for (struct request *q = again, *after; q; q = after) {
        after = q->after;
        start(r, q);
    }
}

static bool vq_reap(struct run *r)
{
    struct vq *v = r->vq;
    struct vhost *link = r->p->vhost;
    bool any = false;
    if (__atomic_load_n(&link->memory, __ATOMIC_ACQUIRE) != v->memory || (load(&link->given_up) && r->in_flight)) {
        vq_renew(r);
        any = true;
    }
    if (!v->memory)
        return any;
    while (v->used != __atomic_load_n(vq_u16(v, AT_USED + 2), __ATOMIC_ACQUIRE)) {
        struct vring_used_elem *used = (struct vring_used_elem *)(v->memory + AT_USED + 4);
        uint32_t n = load(&used[v->used++ % VQ_SIZE].id) - DESC_HEADER;
        if (n < VQ_SLOTS && v->slot[n].request) /* else it is no answer to anything */
            vq_answer(r, &v->slot[n], load(&v->memory[AT_STATUS + n]));
        any = true;
    }
    for (struct request *q; (q = v->first) && vq_put(r, q); v->first = q->after)
        continue;
    return any;
}

/* Asked before sleeping: the engine is to call at its very next answer. False if there is one already. */
static bool vq_arm(struct run *r)
{
    struct vq *v = r->vq;
    if (!v->memory)
        return true;
    __atomic_store_n(vq_u16(v, AT_AVAIL + 4 + 2 * VQ_SIZE), v->used, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return v->used == __atomic_load_n(vq_u16(v, AT_USED + 2), __ATOMIC_ACQUIRE);
}
