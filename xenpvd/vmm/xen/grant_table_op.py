"""grant_table_op: the size of the guest's grant table, and grants used by the guest itself.

Nobody grants this guest anything but itself, and a copy is all that it can do with its own grants; mappings
get the status that Xen gives for a domain that there is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from xenpvd.abi import grant_table as g
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.errors import GrantError, XenError
from xenpvd.vmm.xen.domid import DOM0
from xenpvd.vmm.xen.gnttab import MAX_FRAMES
from xenpvd.vmm.xen.state import Args, Caller, Handler, State

#: Elements of one map, unmap or copy call: a millisecond
BATCH_MAX = 32


def _count(args: Args) -> int:
    return args[2] & 0xFFFF_FFFF


def _domain_status(state: State, dom: int) -> int:
    if state.is_self(dom):
        return g.GNTST_okay
    return g.GNTST_permission_denied if dom == DOM0 else g.GNTST_bad_domain


# -- the table


def do_gnttab_query_size(state: State, caller: Caller, args: Args) -> int:
    if _count(args) != 1:
        raise XenError(x.EINVAL, f"{_count(args)} queries at once")
    dom, nr_frames, max_nr_frames, _ = caller.read(g.gnttab_query_size, args[1])
    if (status := _domain_status(state, dom)) == g.GNTST_okay:
        nr_frames, max_nr_frames = state.gnttab.nr_frames, MAX_FRAMES
    caller.write(g.gnttab_query_size, args[1], dom, nr_frames, max_nr_frames, status)
    return 0


def do_gnttab_setup_table(state: State, caller: Caller, args: Args) -> int:
    """Where the frames lie, as far as the guest has placed them by add_to_physmap."""
    if _count(args) != 1:
        raise XenError(x.EINVAL, f"{_count(args)} tables at once")
    dom, nr_frames, _, frame_list = caller.read(g.gnttab_setup_table, args[1])
    status = _domain_status(state, dom)
    if status == g.GNTST_okay and nr_frames > MAX_FRAMES:
        status = g.GNTST_general_error
    if status == g.GNTST_okay:
        none = (1 << 8 * caller.ulong) - 1
        frames = (state.gnttab.frames() + [none] * nr_frames)[:nr_frames]
        content = b"".join((gfn & none).to_bytes(caller.ulong, "little") for gfn in frames)
        try:
            caller.memory.write(frame_list, content)
        except XenError:
            status = g.GNTST_bad_virt_addr
    caller.write(g.gnttab_setup_table, args[1], dom, nr_frames, status, frame_list)
    return 0


def do_gnttab_get_version(state: State, caller: Caller, args: Args) -> int:
    dom, _ = caller.read(g.gnttab_get_version, args[1])
    state.check_self(dom)
    caller.write(g.gnttab_get_version, args[1], dom, 1)
    return 0


def do_gnttab_set_version(state: State, caller: Caller, args: Args) -> int:
    """Version 1 is what there is; as a Xen that is told to offer no other."""
    (version,) = caller.read(g.gnttab_set_version, args[1])
    caller.write(g.gnttab_set_version, args[1], 1)
    if version == 1:
        return 0
    raise XenError(x.ENOSYS if version == 2 else x.EINVAL, f"grant table version {version}")


# -- grants; the answer is a status in each element


def _elements(caller: Caller, args: Args, layout: Struct) -> Iterator[int]:
    """The address of each element of the array."""
    if (count := _count(args)) > BATCH_MAX:
        raise XenError(x.EINVAL, f"{count} grant operations at once")
    return (args[1] + n * layout.size for n in range(count))


def do_gnttab_map_grant_ref(state: State, caller: Caller, args: Args) -> int:
    layout = g.gnttab_map_grant_ref
    for at in _elements(caller, args, layout):
        address, flags, ref, dom, _, handle, bus = caller.read(layout, at)
        caller.write(layout, at, address, flags, ref, dom, g.GNTST_bad_domain, handle, bus)
    return 0


def do_gnttab_unmap_grant_ref(state: State, caller: Caller, args: Args) -> int:
    layout = g.gnttab_unmap_grant_ref
    for at in _elements(caller, args, layout):
        address, bus, handle, _ = caller.read(layout, at)
        caller.write(layout, at, address, bus, handle, g.GNTST_bad_handle)
    return 0


def do_gnttab_copy(state: State, caller: Caller, args: Args) -> int:
    layout = caller.layout(g.gnttab_copy)
    for at in _elements(caller, args, layout):
        *fields, _ = caller.read(layout, at)
        try:
            _copy(state, caller, *fields)
            status = g.GNTST_okay
        except GrantError as fault:
            status = fault.status
        caller.write(layout, at, *fields, status)
    return 0


def _copy(
    state: State,
    caller: Caller,
    source: int,
    source_dom: int,
    source_offset: int,
    dest: int,
    dest_dom: int,
    dest_offset: int,
    length: int,
    flags: int,
) -> None:
    """Raises :class:`GrantError`."""
    from_gref, to_gref = bool(flags & g.GNTCOPY_source_gref), bool(flags & g.GNTCOPY_dest_gref)
    for dom, by_gref in (source_dom, from_gref), (dest_dom, to_gref):
        if dom != x.DOMID_SELF and not by_gref:
            raise GrantError(g.GNTST_permission_denied, f"a frame of domain {dom}")
        if not state.is_self(dom):
            raise GrantError(g.GNTST_bad_domain, f"domain {dom} grants this guest nothing")
    if max(source_offset, dest_offset) + length > PAGE_SIZE:
        raise GrantError(g.GNTST_bad_copy_arg, f"{length} bytes at {source_offset} to {dest_offset}")
    data = _touch(state, caller, source, source_offset, from_gref, length, None)
    _touch(state, caller, dest, dest_offset, to_gref, length, data)


def _touch(
    state: State, caller: Caller, frame: int, offset: int, by_gref: bool, length: int, data: bytes | None
) -> bytes:
    """Read from (``data`` None) or write into a page that is named by its frame or by a grant."""
    readonly = data is None
    gref = frame
    if by_gref:
        frame = state.gnttab.claim(gref & 0xFFFF_FFFF, readonly=readonly, domid=state.domid)
    try:
        if not state.platform.is_ram(frame):
            raise GrantError(g.GNTST_bad_page, f"frame {frame:#x} is not RAM")
        physical, gpa = caller.memory.physical, (frame << PAGE_SHIFT) + offset
        if data is None:
            return physical.read(gpa, length)
        physical.write(gpa, data)
        return data
    except XenError as fault:
        raise GrantError(g.GNTST_bad_page, str(fault)) from None
    finally:
        if by_gref:
            state.gnttab.release(gref & 0xFFFF_FFFF, readonly=readonly)


OPERATIONS: dict[int, Handler] = {
    g.GNTTABOP_map_grant_ref: do_gnttab_map_grant_ref,
    g.GNTTABOP_unmap_grant_ref: do_gnttab_unmap_grant_ref,
    g.GNTTABOP_setup_table: do_gnttab_setup_table,
    g.GNTTABOP_copy: do_gnttab_copy,
    g.GNTTABOP_query_size: do_gnttab_query_size,
    g.GNTTABOP_set_version: do_gnttab_set_version,
    g.GNTTABOP_get_version: do_gnttab_get_version,
}
