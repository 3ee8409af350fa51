"""A dump: all that a developer wants to see of a guest that misbehaves, in one file for sending, and the
guest's memory in another one for gdb.

What is looked at is what the street may ask (``rpc/service.py``), and the process itself. ``dumpfile.py``
writes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import logging
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

import xenpvd
from xenpvd import paths
from xenpvd.dumpfile import Contents, Machine, write
from xenpvd.errors import HostError, NotFound, XenpvdError
from xenpvd.jobs import Work
from xenpvd.rpc.service import Service
from xenpvd.tasks import in_thread

log = logging.getLogger(__name__)

PROC = Path("/proc/self")
#: Of a recording, taken at a time
PIECE = 1 << 20
#: environ is left out, as it may have secrets
_PROC_FILES = ("status", "limits", "maps", "smaps_rollup", "cgroup", "cmdline")
_PACKAGES = ("aiohttp", "click", "jsonrpcserver", "pydantic", "pydantic_core", "uvloop")

#: The registers first: they and the memory shall be of one time, as nearly as can be.
_LOOKS: dict[str, Callable[[Service], Any]] = {
    "vcpus": lambda it: it.vcpu_list(True),
    "status": lambda it: it.guest_status(),
    "definition": lambda it: it.guest_config(),
    "stats": lambda it: it.guest_stats(),
    "memory": lambda it: it.memory_info(),
    "evtchn": lambda it: it.evtchn_list(),
    "grants": lambda it: it.grant_list(),
    "hypercalls": lambda it: it.hypercall_stats(256),
    "drives": lambda it: it.drive_list(),
    "consoles": lambda it: it.consoles.listing(),
    "viewers": lambda it: it.consoles.viewers(),
    "xenstore": lambda it: list(it.xenstore_tree("/", 1024)),
    "xenstore-history": lambda it: list(it.xenstore_history()),
    "xenstore-quotas": lambda it: it.xenstore_quotas(),
    "events": lambda it: it.events.history(),
    "jobs": lambda it: it.jobs.listing(),
    "log": lambda it: it.log_tail(1000, "debug", ""),
    "daemon": lambda it: it.daemon_info(),
    "tasks": lambda it: sorted(f"{task.get_name()}: {_where(task)}" for task in asyncio.all_tasks()),
}


#: of those without a name, of which several may be made in one second
_numbers = count(1)


async def prepare(service: Service, machine: Machine | None, file: Path | None) -> tuple[Work, int]:
    """Look at everything; what will write it to ``file``, and how many bytes that are. With the memory of
    ``machine``. Raises :class:`HostError`."""
    own = paths.state_dir(service.daemon_info().name)
    if file is None:
        await in_thread(partial(_make, own))
        file = own / time.strftime(f"{service.daemon_info().name}-%Y%m%d-%H%M%S-{next(_numbers)}.tar.gz")
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, look in _LOOKS.items():
        try:
            result = look(service)
            found[name] = await result if inspect.isawaitable(result) else result
        except Exception as fault:  # what is broken is why there is a dump
            if not isinstance(fault, XenpvdError):
                log.error("cannot look at %s for a dump", name, exc_info=fault)
            missing[name] = str(fault) or type(fault).__name__
    recorded = await _recordings(service)
    parts = recorded | await in_thread(partial(_render, found, service.guest_status().shim))
    contents = Contents(parts, missing, machine, [vcpu.regs or {} for vcpu in found.get("vcpus", ())])
    return write(file, contents, own), contents.size


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as fault:
        why = f"cannot make {folder}: {fault.strerror}. Say where the dump shall be written."
        raise HostError(why, fault.errno or 0, str(folder)) from None


async def _recordings(service: Service) -> dict[str, bytes]:
    """Of all consoles; a large one is no reason for the loop to stand still."""
    found = {}
    for console in service.consoles.listing():
        pieces, at = [], console.start
        with contextlib.suppress(NotFound):  # a channel that is removed meanwhile
            while at < console.end:
                chunk = service.consoles.read(console.console, at, None, PIECE)
                pieces.append(chunk.data)
                at = chunk.end
                await asyncio.sleep(0)
        found[f"console/{console.console}.log"] = b"".join(pieces)
    return found


def _render(found: dict[str, object], shim: str | None) -> dict[str, bytes]:
    """Blocking: all of it as files, with what the process is."""
    found["versions"] = _versions(shim)
    plain = to_jsonable_python(found, fallback=str, bytes_mode="base64")
    parts = {f"{name}.json": json.dumps(value, indent=1).encode() for name, value in plain.items()}
    parts["threads.txt"] = _stacks().encode()
    for name in _PROC_FILES:
        with contextlib.suppress(OSError):
            parts[f"proc/{name}"] = (PROC / name).read_bytes().replace(b"\0", b"\n")
    return parts


def _versions(shim: str | None) -> dict[str, object]:
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError, OSError):
            packages[name] = metadata.version(name)
    system = platform.uname()
    of_shim: dict[str, object] = {"path": shim}
    if shim is not None:
        with contextlib.suppress(OSError):
            of_shim["sha256"] = hashlib.sha256(Path(shim).read_bytes()).hexdigest()
    return {
        "xenpvd": xenpvd.__version__,
        "python": sys.version,
        "kernel": f"{system.system} {system.release} {system.version} {system.machine}",
        "packages": packages,
        "shim": of_shim,
    }


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def _where(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    return f"{frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else "(ends)"
