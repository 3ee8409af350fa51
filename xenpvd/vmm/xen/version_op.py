"""xen_version: what Xen says of itself. Every answer is as long as its struct, filled with zeros."""

from __future__ import annotations

from struct import Struct

from xenpvd.abi import version as v
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import XenError
from xenpvd.vmm.xen.state import Args, Caller, Handler, State

#: A guest whose memory is translated, with upcalls by vector and a clock as Xen's; no physical interrupts
FEATURES = (
    1 << v.XENFEAT_writable_page_tables
    | 1 << v.XENFEAT_auto_translated_physmap
    | 1 << v.XENFEAT_hvm_callback_vector
    | 1 << v.XENFEAT_hvm_safe_pvclock
    | 1 << v.XENFEAT_memory_op_vnode_supported
    | 1 << v.XENFEAT_not_direct_mapped
)
#: What guests may be; 3.0 is the version of the ABI
CAPABILITIES = b"xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "


def do_version(state: State, caller: Caller, args: Args) -> int:
    major, minor = state.version
    return major << 16 | minor


def _answer(caller: Caller, args: Args, layout: Struct, *fields: bytes) -> int:
    caller.write(layout, args[1], *fields)
    return 0


def do_extraversion(state: State, caller: Caller, args: Args) -> int:
    return _answer(caller, args, v.xen_extraversion, b".0-xenpvd")


def do_compile_info(state: State, caller: Caller, args: Args) -> int:
    return _answer(caller, args, v.xen_compile_info, b"Python", b"xenpvd", b"", b"")


def do_capabilities(state: State, caller: Caller, args: Args) -> int:
    return _answer(caller, args, v.xen_capabilities_info, CAPABILITIES)


def do_changeset(state: State, caller: Caller, args: Args) -> int:
    return _answer(caller, args, v.xen_changeset_info, b"unavailable")


def do_platform_parameters(state: State, caller: Caller, args: Args) -> int:
    start = v.HYPERVISOR_VIRT_START if caller.longmode else v.HYPERVISOR_COMPAT_VIRT_START
    caller.write(v.xen_platform_parameters, args[1], start)
    return 0


def do_get_features(state: State, caller: Caller, args: Args) -> int:
    submap, _ = caller.read(v.xen_feature_info, args[1])
    if submap:
        raise XenError(x.EINVAL, f"there are no features in submap {submap}")
    caller.write(v.xen_feature_info, args[1], submap, FEATURES)
    return 0


def do_pagesize(state: State, caller: Caller, args: Args) -> int:
    if args[1]:
        raise XenError(x.EINVAL, "the page size is the return value")
    return PAGE_SIZE


def do_guest_handle(state: State, caller: Caller, args: Args) -> int:
    return _answer(caller, args, v.xen_domain_handle, b"")


def do_commandline(state: State, caller: Caller, args: Args) -> int:
    return _answer(caller, args, v.xen_commandline, b"")


def do_build_id(state: State, caller: Caller, args: Args) -> int:
    raise XenError(x.ENODATA, "there is no build to name")


OPERATIONS: dict[int, Handler] = {
    v.XENVER_version: do_version,
    v.XENVER_extraversion: do_extraversion,
    v.XENVER_compile_info: do_compile_info,
    v.XENVER_capabilities: do_capabilities,
    v.XENVER_changeset: do_changeset,
    v.XENVER_platform_parameters: do_platform_parameters,
    v.XENVER_get_features: do_get_features,
    v.XENVER_pagesize: do_pagesize,
    v.XENVER_guest_handle: do_guest_handle,
    v.XENVER_commandline: do_commandline,
    v.XENVER_build_id: do_build_id,
}
