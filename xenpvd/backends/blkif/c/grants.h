/* The guest's grant table: an entry is claimed for as long as its page is used. */
#include "plane.h"

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

/* A reference's count has uses in its low half, those for writing in the high one, and is held, by its top bit,
 * while somebody changes it and the entry's flags along with it: the last to go clears them, and nobody may come
 * in between. vmm/grant_uses.py counts along. */
#define HELD (1ull << 63)
#define USE 1ull
#define USE_TO_WRITE (1ull << 32 | USE)

static uint64_t hold(uint64_t *uses)
{
    uint64_t seen;
    while ((seen = __atomic_fetch_or(uses, HELD, __ATOMIC_ACQUIRE)) & HELD)
        sched_yield(); /* for the other's few instructions; it may have been preempted */
    return seen;
}

static void let_go(uint64_t *uses, uint64_t count)
{
    __atomic_store_n(uses, count, __ATOMIC_RELEASE);
}

/* Mark the entry as in use, and give the page; NULL with *status, a GNTST_*. */
static uint8_t *mark(struct plane *p, uint64_t *entry, bool readonly, int *status)
{
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

static uint8_t *claim(struct plane *p, uint32_t gref, bool readonly, int *status)
{
    uint64_t *entry = grant_entry(p, gref);
    *status = GNTST_bad_gntref;
    if (!entry)
        return NULL;
    uint64_t *uses = &p->grant_uses[gref], count = hold(uses);
    uint8_t *page = mark(p, entry, readonly, status);
    let_go(uses, page ? count + (readonly ? USE : USE_TO_WRITE) : count);
    return page;
}

static void release(struct plane *p, uint32_t gref, bool readonly)
{
    uint64_t *uses = &p->grant_uses[gref], count = hold(uses) - (readonly ? USE : USE_TO_WRITE);
    uint16_t *flags = (uint16_t *)grant_entry(p, gref); /* which is there: it has been claimed */
    if (!(count >> 32))
        __atomic_and_fetch(flags, (uint16_t)~(count ? GTF_writing : GTF_reading | GTF_writing), __ATOMIC_SEQ_CST);
    let_go(uses, count);
}
