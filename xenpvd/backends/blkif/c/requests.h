/* A request from its slot to its answer. */
#include "vhost.h"

static void done(struct run *r, struct request *q)
{
    struct plane *p = r->p;
    for (uint32_t n = 0; n < q->n_grefs; n++)
        release(p, q->grefs[n], q->operation == BLKIF_OP_WRITE);
    if (q->status == BLKIF_RSP_OKAY && !q->ours) {
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
    uint64_t ns = r->at - q->begun, us = ns / 1000, bucket = us ? 64 - (uint64_t)__builtin_clzll(us) : 0;
    bump(&p->stats.latency[bucket < 23 ? bucket : 23], 1);
    bump(&p->stats.latency_ns, ns);
    if (!q->ours)
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

static bool is_no_error(int number)
{
    return number == EINTR || number == EAGAIN;
}

static uint64_t step(struct run *r, const struct request *q)
{
    uint64_t left = q->length - q->done, most = DISCARD_STEP;
    if (r->p->vhost && load(&r->p->vhost->max_discard))
        most = load(&r->p->vhost->max_discard);
    return left < most ? left : most;
}

/* The kernel has transferred ``result`` bytes, or failed with its negative. True if that was not all of it. */
static bool advance(struct run *r, struct request *q, int64_t result)
{
    if (is_no_error((int)-result))
        return true;
    if (result < 0) {
        fail(r, q, (int)-result);
        return false;
    }
    if (q->operation == BLKIF_OP_FLUSH_DISKCACHE) {
        if (load(r->p->flush_fault)) /* of another ring, meanwhile */
            fail(r, q, load(r->p->flush_fault));
        else
            done(r, q);
        return false;
    }
    if (q->operation == BLKIF_OP_DISCARD)
        result = (int64_t)step(r, q);
    if (result == 0) { /* a file that has become too short; a device that takes no more */
        fail(r, q, EIO);
        return false;
    }
    q->done += (uint64_t)result;
    bool cut_short = q->operation == BLKIF_OP_DISCARD && load(&r->p->stopping); /* it is advice */
    if (q->done >= q->length || cut_short) {
        done(r, q);
        return false;
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
    return true;
}

static int64_t carry_out(struct run *r, struct request *q)
{
    int fd = r->p->image_fd;
    off_t at = (off_t)(q->offset + q->done);
    int64_t result;
    do {
        struct iovec *iov = q->iov + q->first_iov;
        int count = (int)(q->n_iov - q->first_iov);
        uint64_t range[2] = {(uint64_t)at, step(r, q)};
        if (q->operation == BLKIF_OP_READ)
            result = preadv(fd, iov, count, at);
        else if (q->operation == BLKIF_OP_WRITE)
            result = pwritev2(fd, iov, count, at, (int)r->p->write_flags);
        else if (q->operation == BLKIF_OP_FLUSH_DISKCACHE)
            result = fd < 0 ? 0 : fdatasync(fd);
        else if (r->p->is_block)
            result = ioctl(fd, BLKDISCARD, range);
        else
            result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, (off_t)range[1]);
    } while (result < 0 && is_no_error(errno));
    if (result < 0)
        result = -errno;
    r->at = now();
    return result;
}

static void submit(struct run *r, struct request *q)
{
    struct plane *p = r->p;
    struct io_uring_sqe *e = sqe(&r->ring, (uint64_t)(q - r->requests));
    e->fd = r->ring.fixed ? 0 : p->image_fd;
    e->flags = r->ring.fixed ? IOSQE_FIXED_FILE : 0;
    e->off = q->offset + q->done;
    switch (q->operation) {
    case BLKIF_OP_READ:
    case BLKIF_OP_WRITE:
        e->opcode = q->operation == BLKIF_OP_READ ? IORING_OP_READV : IORING_OP_WRITEV;
        e->addr = (uint64_t)(q->iov + q->first_iov);
        e->len = q->n_iov - q->first_iov;
        if (e->len == 1) { /* the kernel need not copy the table */
            e->opcode = q->operation == BLKIF_OP_READ ? IORING_OP_READ : IORING_OP_WRITE;
            e->addr = (uint64_t)q->iov[q->first_iov].iov_base;
            e->len = (uint32_t)q->iov[q->first_iov].iov_len;
        }
        e->rw_flags = q->operation == BLKIF_OP_WRITE ? (int)p->write_flags : 0;
        break;
    case BLKIF_OP_FLUSH_DISKCACHE:
        e->opcode = IORING_OP_FSYNC;
        e->fsync_flags = IORING_FSYNC_DATASYNC;
        e->off = 0;
        break;
    default:
        e->opcode = IORING_OP_FALLOCATE;
        e->len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        e->addr = step(r, q);
    }
}

/* One at a time: the kernel tells of lost pages once, so that of two flushes one would be said to have succeeded.
 * Those that come while one is under way have the next one in common. */
static void submit_flush(struct run *r, struct request *q)
{
    if (r->flushing) {
        q->after = r->to_flush;
        r->to_flush = q;
    } else {
        r->flushing = q;
        submit(r, q);
    }
}

static void flush_ended(struct run *r, int64_t result)
{
    struct request *q = r->flushing, *after;
    if (is_no_error((int)-result)) {
        submit(r, q);
        return;
    }
    for (; q; q = after) {
        after = q->after;
        advance(r, q, result);
    }
    r->flushing = r->to_flush;
    r->to_flush = NULL;
    if (r->flushing)
        submit(r, r->flushing);
}

/* Begin, or go on with, what is checked. */
static void start(struct run *r, struct request *q)
{
    struct plane *p = r->p;
    if (q->operation == BLKIF_OP_WRITE && !p->is_block && !p->vhost) {
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
    if (p->vhost) {
        vq_start(r, q);
        return;
    }
    if (!p->uses_uring || (q->operation == BLKIF_OP_DISCARD && p->is_block) || p->image_fd < 0) {
        while (advance(r, q, carry_out(r, q)))
            ;
        return;
    }
    if (q->operation == BLKIF_OP_FLUSH_DISKCACHE)
        submit_flush(r, q);
    else
        submit(r, q);
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
    q->ours = false;
    q->offset = sector * SECTOR;
    q->length = count * SECTOR;
    q->done = q->n_grefs = q->n_iov = q->first_iov = 0;
    q->after = NULL;
    q->begun = r->at;
    return q;
}

/* ``table`` is a private copy of ``nr`` segments of 8 bytes. */
static void transfer(struct run *r, uint64_t id, uint8_t operation, uint64_t sector, const uint8_t *table,
                     uint32_t nr)
{
    struct plane *p = r->p;
    uint32_t inside = p->sector_size / SECTOR - 1, count = 0; /* sector_size is a power of two */
    if (operation == BLKIF_OP_WRITE && load(&p->readonly)) {
        refuse(r, id, operation, BLKIF_RSP_ERROR, REFUSED_READONLY, 0, 0);
        return;
    }
    for (uint32_t n = 0; n < nr; n++) {
        uint32_t first = table[8 * n + 4], last = table[8 * n + 5];
        if (first > last || last >= SECTORS_PER_PAGE || first & inside || (last + 1) & inside) {
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
    release(p, gref, true);
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
