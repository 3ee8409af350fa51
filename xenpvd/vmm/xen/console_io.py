"""console_io: Xen's own console, where the shim writes its log. There is nothing to read from it."""

from __future__ import annotations

from xenpvd.abi import xen as x
from xenpvd.errors import XenError
from xenpvd.vmm.xen.state import Args, Caller, Handler, State

#: One CONSOLEIO_write; the shim's lines come in pieces far smaller
CONSOLE_WRITE_MAX = 1 << 16


def do_console_write(state: State, caller: Caller, args: Args) -> int:
    count = args[1] & 0xFFFF_FFFF
    if count > CONSOLE_WRITE_MAX:
        raise XenError(x.EINVAL, f"{count} bytes of console output at once")
    state.platform.console_write(caller.memory.read(args[2], count))
    return 0


OPERATIONS: dict[int, Handler] = {x.CONSOLEIO_write: do_console_write}
