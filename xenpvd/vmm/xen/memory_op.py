"""memory_op: where the guest's pages lie, and its balloon."""

from __future__ import annotations

from collections.abc import Callable

from xenpvd.abi import memory as m
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SHIFT
from xenpvd.errors import XenError
from xenpvd.vmm.xen.domid import DOM0
from xenpvd.vmm.xen.gnttab import MAX_FRAMES
from xenpvd.vmm.xen.state import Args, Caller, Handler, State

#: Extents handled per reservation call (the shim asks for at most 64), and pages in them: a few milliseconds.
#: The answer says how many were done
EXTENTS_MAX, PAGES_MAX = 64, 1024
#: The longest extent: 2^9 pages = 2 MiB
EXTENT_ORDER_MAX = 9
#: Pages placed by one add_to_physmap_batch: all that there are to place, and room
BATCH_MAX = 2 * MAX_FRAMES


def do_memory_map(state: State, caller: Caller, args: Args) -> int:
    room, buffer = caller.read(m.xen_memory_map, args[1])
    entries = state.e820[:room]
    caller.memory.write(buffer, b"".join(m.e820entry.pack(*entry) for entry in entries))
    caller.write(m.xen_memory_map, args[1], len(entries), buffer)
    return 0


# -- pages of Xen's own in the guest's memory


def do_add_to_physmap(state: State, caller: Caller, args: Args) -> int:
    domid, _, space, idx, gfn = caller.read(m.xen_add_to_physmap, args[1])
    if space == m.XENMAPSPACE_gmfn_foreign:
        raise XenError(x.ENOSYS, "foreign pages come by add_to_physmap_batch only")
    state.check_self(domid)
    _place(state, space, idx, gfn)
    return 0


def do_add_to_physmap_batch(state: State, caller: Caller, args: Args) -> int:
    domid, space, size, foreign, idxs, gfns, errs = caller.read(m.xen_add_to_physmap_batch, args[1])
    if space == m.XENMAPSPACE_gmfn_range:
        raise XenError(x.EOPNOTSUPP, "a batch of ranges")
    state.check_self(domid)
    if size > BATCH_MAX:
        raise XenError(x.EINVAL, f"{size} pages to place at once")
    for n in range(size):
        if n:
            state.platform.let_others()  # each may be a slot of KVM's
        idx, gfn = caller.read_ulong(idxs, n), caller.read_ulong(gfns, n)
        status = 0
        try:
            if space == m.XENMAPSPACE_gmfn_foreign:
                raise XenError(x.EPERM if foreign == DOM0 else x.ESRCH, f"domain {foreign} shares nothing so")
            _place(state, space, idx, gfn)
        except XenError as fault:
            status = -fault.errno
        caller.memory.write(errs + 4 * n, status.to_bytes(4, "little", signed=True))
    return 0


def _place(state: State, space: int, idx: int, gfn: int) -> None:
    if space == m.XENMAPSPACE_dev_mmio:
        raise XenError(x.EACCES, "the guest has no devices")
    if space == m.XENMAPSPACE_shared_info and idx == 0:
        state.platform.claim(gfn)
        state.platform.set_shared_info(gfn)
    elif space == m.XENMAPSPACE_grant_table and idx < MAX_FRAMES:
        state.platform.claim(gfn)
        state.gnttab.set_frame(idx, gfn)
    else:
        raise XenError(x.EINVAL, f"no page {idx:#x} in map space {space}")


def do_remove_from_physmap(state: State, caller: Caller, args: Args) -> int:
    """RAM goes back to the host; a page of Xen's own stays where it is, which nobody can tell."""
    domid, gfn = caller.read(m.xen_remove_from_physmap, args[1])
    state.check_self(domid)
    if state.platform.is_ram(gfn):
        state.platform.discard(gfn)
    elif not state.platform.is_backed(gfn):
        raise XenError(x.ENOENT, f"there is no page at frame {gfn:#x}")
    return 0


# -- the balloon


def do_increase_reservation(state: State, caller: Caller, args: Args) -> int:
    """Pages without a place are of no use to such a guest, and it has its maximum: none is given."""
    caller.read(m.xen_memory_reservation, args[1])
    return 0


def do_decrease_reservation(state: State, caller: Caller, args: Args) -> int:
    """The guest gives pages back; the answer is the number of extents done."""
    return _each_extent(state, caller, args, state.platform.discard)


def do_populate_physmap(state: State, caller: Caller, args: Args) -> int:
    """The guest takes the same frames again: the host gives memory at the first touch."""
    return _each_extent(state, caller, args, state.platform.populate)


def _each_extent(state: State, caller: Caller, args: Args, act: Callable[[int], None]) -> int:
    """Xen answers here with what was done, not with an error; the guest asks again for the rest."""
    extents, count, order, _, domid = caller.read(m.xen_memory_reservation, args[1])
    if not state.is_self(domid) or order > EXTENT_ORDER_MAX:
        return 0
    is_ram = state.platform.is_ram
    wanted: int = min(count, EXTENTS_MAX, PAGES_MAX >> order)
    for done in range(wanted):
        try:
            first = caller.read_ulong(extents, done)
            gfns = range(first, first + (1 << order))
            if not all(is_ram(gfn) for gfn in gfns):
                return done
            for gfn in gfns:
                act(gfn)
        except XenError:
            return done
    return wanted


# -- sizes, in pages


def do_maximum_ram_page(state: State, caller: Caller, args: Args) -> int:
    """The host's, in Xen; ours is the guest's, and no more is to be known."""
    return _end(state) - 1


def do_maximum_gpfn(state: State, caller: Caller, args: Args) -> int:
    _ask_domain(state, caller, args)
    return _end(state) - 1


def do_current_reservation(state: State, caller: Caller, args: Args) -> int:
    _ask_domain(state, caller, args)
    return (state.ram >> PAGE_SHIFT) - state.platform.ballooned()


def do_maximum_reservation(state: State, caller: Caller, args: Args) -> int:
    _ask_domain(state, caller, args)
    return state.ram >> PAGE_SHIFT


def _ask_domain(state: State, caller: Caller, args: Args) -> None:
    (domid,) = caller.read(m.xen_memory_domain, args[1])
    state.check_self(domid)


def _end(state: State) -> int:
    return max(base + size for base, size, _ in state.e820) >> PAGE_SHIFT


OPERATIONS: dict[int, Handler] = {
    m.XENMEM_increase_reservation: do_increase_reservation,
    m.XENMEM_decrease_reservation: do_decrease_reservation,
    m.XENMEM_maximum_ram_page: do_maximum_ram_page,
    m.XENMEM_current_reservation: do_current_reservation,
    m.XENMEM_maximum_reservation: do_maximum_reservation,
    m.XENMEM_populate_physmap: do_populate_physmap,
    m.XENMEM_add_to_physmap: do_add_to_physmap,
    m.XENMEM_memory_map: do_memory_map,
    m.XENMEM_maximum_gpfn: do_maximum_gpfn,
    m.XENMEM_remove_from_physmap: do_remove_from_physmap,
    m.XENMEM_add_to_physmap_batch: do_add_to_physmap_batch,
}
