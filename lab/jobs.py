"""Runs a command inside the lab host, with the checkout's code as it is now, and streams what it says."""

from __future__ import annotations

import io
import os
import select
import shutil
import signal
import socket
import sys
import tarfile
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Protocol

from lab.host import Host, in_use, last_words, up
from lab.paths import CHECKOUT, cache
from lab.progress import LabError
from lab.wire import EXIT, RESULTS, SIGNAL, SIZE, STDERR, STDIN, STDOUT, Job, frame, read_frame, unpack

SKIPPED = {".git", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"}
#: beginnings of names
PASSED_ON = ("TERM", "COLORTERM", "NO_COLOR", "PYTEST_ADDOPTS", "PYTHONASYNCIODEBUG", "XENPVD_")


class Output(Protocol):
    """What a job's output is written to."""

    def write(self, data: bytes, /) -> object: ...
    def flush(self) -> object: ...


def run(
    argv: Sequence[str],
    kind: str = "xen",
    *,
    terminal: bool = False,
    results: Path | None = None,
    environ: Mapping[str, str] | None = None,
    out: Output | None = None,
    err: Output | None = None,
) -> int:
    """Run ``argv`` in the lab host of this kind (started if need be), give its exit status as a shell would.

    ``terminal`` hands this process's terminal over. What the command leaves in the folder $LAB_RESULTS is put
    into ``results``. Raises LabError if the lab host cannot be had or dies.
    """
    host = up(kind)
    code = _code()
    passed = {name: text for name, text in os.environ.items() if name.startswith(PASSED_ON)}
    passed |= {"XENPVD_CACHE": str(cache()), "XENPVD_IN_LAB": "1"} | dict(environ or {})
    cwd = Path.cwd() if Path.cwd().is_relative_to(CHECKOUT) else CHECKOUT
    size = shutil.get_terminal_size()
    job = Job(
        list(argv),
        str(cwd),
        str(CHECKOUT),
        len(code),
        passed,
        (size.lines, size.columns) if terminal else None,
    )
    with in_use(kind), _connection(host) as peer, peer.makefile("rb") as stream:
        peer.sendall(host.token.encode() + b"\n" + job.encode() + code)
        sending = threading.Lock()

        def send(kind: bytes, payload: bytes) -> None:
            with sending:
                peer.sendall(frame(kind, payload))

        outputs: dict[bytes, Output] = {STDOUT: out or sys.stdout.buffer, STDERR: err or sys.stderr.buffer}
        with _signals_passed_on(send), _terminal_handed_over(send) if terminal else nullcontext():
            return _receive(stream, outputs, results, kind)


def _receive(
    stream: BinaryIO, outputs: Mapping[bytes, Output], results: Path | None, kind: str = "xen"
) -> int:
    archive = io.BytesIO()
    while (got := read_frame(stream)) is not None:
        what, payload = got
        if what in outputs:
            outputs[what].write(payload)
            outputs[what].flush()
        elif what == RESULTS:
            archive.write(payload)
        elif what == EXIT:
            if results is not None:
                archive.seek(0)
                with tarfile.open(fileobj=archive) as tar:
                    unpack(tar, results)
            return int(payload)
    raise LabError(
        f"the job did not end: the lab host went away. Its last words:\n{last_words(kind)}\nTry again."
    )


@contextmanager
def _connection(host: Host) -> Iterator[socket.socket]:
    try:
        with socket.create_connection(("127.0.0.1", host.port), timeout=60) as peer:
            peer.settimeout(None)
            yield peer
    except (ConnectionError, TimeoutError) as fault:
        raise LabError(
            f"cannot speak to the lab host: {fault}. Its last words:\n{last_words(host.kind)}\n"
            f"Start a fresh one with make lab-down lab-up HOST={host.kind}."
        ) from None


def _code() -> bytes:
    """The checkout as a tar, without what is not source."""

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if SKIPPED & set(Path(member.name).parts) else member

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(CHECKOUT, ".", filter=wanted)
    return data.getvalue()


Send = Callable[[bytes, bytes], None]


@contextmanager
def _signals_passed_on(send: Send) -> Iterator[None]:
    """The first SIGINT or SIGTERM goes to the job, to end it as it would here; one more ends us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def pass_on(number: int, context: object) -> None:
        signal.signal(number, before[number])
        send(SIGNAL, b"%d" % number)

    for number in before:
        signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _terminal_handed_over(send: Send) -> Iterator[None]:
    """Until the job ends, keys go to it as they are typed, and the terminal's size follows."""
    if not sys.stdin.isatty():
        raise LabError("cannot give the job a terminal: stdin is none. Leave --tty out.")
    fd = sys.stdin.fileno()
    done, stop = os.pipe()

    def keys() -> None:
        while True:
            readable, _, _ = select.select([fd, done], [], [])
            if done in readable:
                return
            if not (data := os.read(fd, 4096)):
                return
            send(STDIN, data)

    def resized(number: int, context: object) -> None:
        size = shutil.get_terminal_size()
        send(SIZE, b"%d %d" % (size.lines, size.columns))

    saved = termios.tcgetattr(fd)
    before = signal.signal(signal.SIGWINCH, resized)
    pump = threading.Thread(target=keys, daemon=True)
    try:
        tty.setraw(fd)
        pump.start()
        yield
    finally:
        os.close(stop)
        pump.join()
        os.close(done)
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)
        signal.signal(signal.SIGWINCH, before)
