"""The house's rules (ARCHITECTURE.md) held against the code as it is: who imports whom, how large files are,
and that each has its test."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from pathlib import Path

HOUSE = Path(__file__).parent.parent
PACKAGE = HOUSE / "xenpvd"
LINES_MAX = 500

#: what guest.py is made of
INSIDE = (
    "signs", "domain", "drives", "descriptors", "consoles", "channels", "check", "requests", "balloon",
    "progress", "backoff", "changes",
)  # fmt: skip
LEAVES = (
    "access", "errors", "events", "tasks", "config", "views", "figures", "paths", "sockets", "patterns",
    "counts", "logs",
)  # fmt: skip

#: what a module may import of ours, by patterns; the first row that fits counts
MAY_IMPORT = [
    ("__init__", ()),
    ("abi.*", ("abi.*",)),
    ("vmm.xen.*", ("vmm.xen.*", "abi.*", "errors", "views")),
    ("vmm.*", ("vmm.*", "abi.*", *LEAVES)),
    ("backends.*", ("backends.*", "abi.*", *LEAVES)),
    ("rpc.*", ("rpc.*", "__init__", *LEAVES)),
    # a client of daemons, with a street door of its own
    ("gateway.*", ("gateway.*", "rpc.*", "client.*", "__init__", *LEAVES)),
    # clients: they talk to the socket as anyone else, and start fast
    ("client.*", ("client.*", "errors", "paths", "tasks")),
    ("ctl.doctor", ("ctl.*", "vmm.boot", "abi.linux_kvm", "errors", "paths")),
    ("ctl.boot", ("ctl.*", "__init__", "check", "config", "errors", "paths")),  # "check" needs no daemon
    ("ctl.import_xl", ("ctl.*", "config", "errors", "paths")),  # what it prints must pass our own model
    ("ctl.xl_keys", ("ctl.*", "config", "paths")),
    ("ctl.*", ("ctl.*", "__init__", "errors", "paths")),
    # the only ones that combine vmm and backends; the street is not their affair
    *((name, ("vmm.*", "backends.*", *INSIDE, *LEAVES)) for name in ("guest", *INSIDE[:9])),
    *((name, LEAVES) for name in INSIDE[9:]),
    # guest and street meet here
    ("stats", ("guest", "domain", *LEAVES)),
    ("service", ("guest", "check", "dump", "jobs", "stats", "rpc.service", "__init__", *LEAVES)),
    ("daemon", (
        "guest", "changes", "jobs", "service", "supervisor", "lag", "rpc.*", "vmm.vcpu", "__init__", *LEAVES
    )),
    ("supervisor", ()),
    ("jobs", LEAVES),
    ("dump", ("dumpfile", "jobs", "rpc.service", "__init__", *LEAVES)),
    ("dumpfile", ("jobs", "vmm.core", "vmm.memory", *LEAVES)),
    ("inherited", ("errors", "paths")),
    ("__main__", ("daemon", "inherited", "__init__", *LEAVES)),
    ("lag", ("counts",)),
    *((name, LEAVES) for name in LEAVES),
]  # fmt: skip

#: bytes and rules: no time, no thread, no file, no loop; they run in any test and under any fuzzer
SANS_IO = (
    "abi.*",
    "vmm.xen.*",
    *(f"vmm.{name}" for name in (
        "acpi", "bzimage", "core", "cpuid", "elf", "hypercall_insn", "kernel", "layout", "registers",
        "start_info",
    )),
    "backends.ops", "backends.ring", "backends.xenbus",
    "backends.blkif.formats", "backends.blkif.request", "backends.blkif.terms", "backends.blkif.vdev",
    "backends.console.ring", "backends.console.safe", "backends.console.timeline",
    *(f"backends.xenstore.{name}" for name in (
        "call", "connection", "control", "domain", "domain_ops", "history", "node_ops", "outbox", "path",
        "perms", "quota", "request", "ring", "store", "transaction", "watch", "wire",
    )),
)  # fmt: skip
IO = {
    "asyncio", "os", "socket", "threading", "mmap", "ctypes", "fcntl", "time", "logging", "select", "signal",
    "pathlib", "subprocess",
}  # fmt: skip

#: modules without a test file of their own, and why
TESTED_ELSEWHERE = {
    "__main__": "tests/test_main.py starts it as a process",
    "domain": "tests/test_guest.py: a life is seen through its guest",
    "progress": "tests/test_guest.py: states and phases are the guest's",
    "signs": "tests/test_guest.py: waiting for them is the guest's",
    "service": "tests/test_daemon.py: the verbs over the real socket",
    "views": "values only",
    "figures": "values only",
    "backends.ops": "Protocols only",
    "backends.blkif.hook": "tests/test_packaging.py: the wheel is made by it",
    "backends.console.viewer": "tests/backends/console/test_backend.py: viewers of a real console",
    "backends.xenstore.node_ops": "tests/backends/xenstore/test_call.py: requests come in by the one door",
    "backends.xenstore.request": "tests/backends/xenstore/test_call.py: what every handler is given",
    "ctl.xl_meanings": "tests/ctl/test_xl_keys.py: every key of xl has one",
    "client.methods": "tests/rpc/test_python_types.py: what is kept is what is made from the API",
    "client.params": "tests/rpc/test_python_types.py, as methods",
    "client.shapes": "tests/rpc/test_python_types.py, as methods",
    "rpc.service": "Protocols only",
    "rpc.web": "tests/rpc/test_http.py: what each client of it meets",
    "vmm.build": "tests/vmm/test_machine.py: a machine is built from it",
    "vmm.outer_xen": "tests/vmm/test_machine.py: a machine's tables and doors",
    "vmm.xen.doors": "Protocols only",
    "vmm.xen.state": "tests/vmm/xen: every operation is given one",
    "rpc.__main__": "tests/rpc/test_schema.py: what is kept is what it prints",
    "rpc.registry": "tests/rpc/methods register every method",
    "rpc.qmp.monitor": "tests/rpc/qmp/test_events.py, test_guest.py: what goes on behind a reply",
    "rpc.qmp.names": "tests/rpc/qmp/test_block.py: nodes and devices are told by their names",
    "rpc.qmp.params": "tests/rpc/qmp/test_block.py: what the commands take, and refuse",
    "rpc.qmp.registry": "tests/rpc/qmp/test_guest.py: every command is listed",
    "abi.page": "a Protocol; tests/vmm/test_memory.py has the real one",
    **{
        f"abi.{name}": "tests/abi/test_xen.py: the layouts of Xen's headers are one table"
        for name in (
            "cpuid", "event_channel", "grant_table", "hvm_op", "io_console", "memory", "sched", "vcpu",
            "version",
        )
    },
}  # fmt: skip


def module_name(path: Path) -> str:
    """``vmm.kvm`` for xenpvd/vmm/kvm.py; a room's __init__ is ``vmm.__init__``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(modules of ours, by the names of FILES; top-level names of others') that a file imports anywhere."""
    ours, others = set[str](), set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            # "from xenpvd.abi import xen" names a module, "from xenpvd.abi.xen import EINVAL" does not
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("xenpvd.") in FILES else node.module for name in whole]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "xenpvd":
                others.add(name.split(".")[0])
                continue
            inner = name.removeprefix("xenpvd").lstrip(".")
            ours.add(inner if inner in FILES else f"{inner}.__init__".lstrip("."))
    return ours, others


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def test_doors_open_one_way() -> None:
    wrong = {}
    for name, path in FILES.items():
        allowed = next((allowed for pattern, allowed in MAY_IMPORT if fnmatchcase(name, pattern)), None)
        assert allowed is not None, f"{name} is in no room: add a row to MAY_IMPORT"
        if not_allowed := {module for module in imports(path)[0] if not fits(module, allowed)}:
            wrong[name] = not_allowed
    assert wrong == {}


def test_sans_io_modules_do_no_io_and_no_other_is_so_pure() -> None:
    wrong = {}
    for name, path in FILES.items():
        ours, others = imports(path)
        io = others & IO | {
            module for module in ours if not fits(module, (*SANS_IO, "errors", "views", "figures"))
        }
        if fits(name, SANS_IO) and io:
            wrong[name] = f"does I/O by {io}"
        elif fits(name, ("vmm.*", "backends.*")) and not fits(name, (*SANS_IO, "*__init__")) and not io:
            wrong[name] = "does no I/O: add it to SANS_IO"
    assert wrong == {}


def test_every_row_is_of_use() -> None:
    patterns = [*SANS_IO, *TESTED_ELSEWHERE, *(pattern for pattern, _ in MAY_IMPORT)]
    assert [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in FILES)] == []


def test_ioctls_are_in_one_file_only() -> None:
    """The doctor has its own few, because it must speak where xenpvd cannot even start; a block device's are
    the image's; a socket's and a terminal's are xenpvctl's."""
    found = {name for name, path in FILES.items() if "ioctl(" in path.read_text()}
    assert found == {"vmm.kvm", "ctl.doctor", "ctl.pty", "backends.blkif.image"}


def test_structs_are_never_packed_into_pages() -> None:
    """pack_into writes zeroes first and then byte by byte; a guest, or KVM, can see that."""
    private = {"vmm.kvm", "vmm.boot"}  # buffers of our own on their way to an ioctl
    assert {name for name, path in FILES.items() if "pack_into(" in path.read_text()} <= private


def test_no_file_is_too_long() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    generated = ("client.shapes", "client.params", "client.methods")  # from the API, for each of its values
    assert {name: n for name, n in lines.items() if n > LINES_MAX and name not in generated} == {}


def test_every_file_says_its_job_and_takes_annotations_as_text() -> None:
    wrong = []
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
        if tree.body and not (ast.get_docstring(tree) and (future or name.endswith("__init__"))):
            wrong.append(name)
    assert wrong == []


def test_every_module_has_its_test_or_an_excuse() -> None:
    wrong = {}
    for name in FILES:
        *rooms, module = name.split(".")
        twin = HOUSE.joinpath("tests", *rooms, f"test_{module}.py")
        if module != "__init__" and twin.exists() == (name in TESTED_ELSEWHERE):
            wrong[name] = "needs no excuse any more" if twin.exists() else f"{twin} is missing"
    assert wrong == {}


def test_the_rules_see_what_they_should(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "import os.path\nfrom xenpvd.abi import xen\nfrom xenpvd.abi.xen import EINVAL\n"
        "def f():\n    from xenpvd.vmm.kvm import System\n    from xenpvd import __version__\n"
    )
    assert imports(file) == ({"abi.xen", "vmm.kvm", "__init__"}, {"os"})
