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
