/* The ring with the guest. */
#include "uring.h"

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
