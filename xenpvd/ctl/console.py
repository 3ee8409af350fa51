"""A terminal on a guest's console: raw bytes both ways until the escape key, and the terminal put right again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from enum import Enum
from types import FrameType

#: After the end of a piped stdin the answer to what was typed may take this long, in seconds, to come.
QUIET = 0.5


class End(Enum):
    """Why a conversation ended."""

    ESCAPE = "the escape key"
    INPUT = "the end of stdin"
    CLOSED = "the other side"
    WATCHED = "what was watched for"


def parse_escape(text: str) -> int:
    """The byte of ``^]``, ``^A`` or a single character. Raises ValueError."""
    if len(text) == 2 and text[0] == "^" and 0x40 <= ord(text[1].upper()) <= 0x5F:
        return ord(text[1].upper()) & 0x1F
    if len(text) == 1 and text.isascii():
        return ord(text)
    raise ValueError(f"{text!r} is no key: give one as ^] or ^A, or a single character")


def spell(key: int) -> str:
    return f"^{chr(key | 0x40)}" if key < 0x20 else chr(key)


def converse(
    sock: socket.socket,
    pending: bytes,
    *,
    name: str,
    escape: int,
    keyboard: bool = True,
    watch: int | None = None,
    over: Callable[[], bool] = lambda: False,
) -> End:
    """Carry stdin to ``sock`` and ``sock`` (``pending`` came from it already) to stdout.

    Without ``keyboard`` only the escape key is looked for. ``over`` is asked when the descriptor ``watch`` can
    be read: True ends the conversation, once the console is quiet.
    """
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    on_terminal = os.isatty(stdin)
    if on_terminal:
        print(f"connected to {name}; leave with {spell(escape)}", file=sys.stderr, flush=True)
    with _raw(stdin) if on_terminal else contextlib.nullcontext():
        end = _carry(sock, pending, stdin, stdout, escape if on_terminal else None, keyboard, watch, over)
    if on_terminal:
        print(f"\nleft {name}", file=sys.stderr, flush=True)
    return end


def _carry(
    sock: socket.socket,
    pending: bytes,
    stdin: int,
    stdout: int,
    escape: int | None,
    keyboard: bool,
    watch: int | None,
    over: Callable[[], bool],
) -> End:
    sock.setblocking(False)
    _write_all(stdout, pending)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    listening = keyboard or escape is not None  # a read-only pipe: stdin is not ours to eat
    if listening:
        poller.register(stdin, select.POLLIN)
    if watch is not None:
        poller.register(watch, select.POLLIN)
    typed = bytearray()
    ending: End | None = None
    quiet_at = 0.0
    while True:
        wait = None if ending is None else max(0, round((quiet_at - time.monotonic()) * 1000))
        ready = dict(poller.poll(wait))
        if sock.fileno() in ready:
            if ready[sock.fileno()] & select.POLLOUT:
                _send(sock, typed)
            if ready[sock.fileno()] & ~select.POLLOUT:
                data = _receive(sock)
                if data == b"":
                    return ending or End.CLOSED
                if data:
                    _write_all(stdout, data)
                    quiet_at = time.monotonic() + QUIET
        if stdin in ready:
            data = os.read(stdin, 4096)
            head, found, _ = data.partition(bytes([escape])) if escape is not None else (data, b"", b"")
            typed += head if keyboard else b""
            if found:
                _send(sock, typed)
                return End.ESCAPE
            if not data:
                poller.unregister(stdin)
                listening, ending = False, End.INPUT
                quiet_at = time.monotonic() + QUIET
        if watch is not None and watch in ready and over():
            poller.unregister(watch)
            watch, ending = None, End.WATCHED
            quiet_at = time.monotonic() + QUIET
        if ending is not None and not typed and time.monotonic() >= quiet_at:
            return ending
        # a guest that takes no input holds the typist back, nobody else
        poller.modify(sock, select.POLLIN | (select.POLLOUT if typed else 0))
        if listening:
            poller.modify(stdin, 0 if len(typed) > 65536 else select.POLLIN)


def _send(sock: socket.socket, typed: bytearray) -> None:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        del typed[: sock.send(typed)]


def _receive(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def _write_all(stdout: int, data: bytes) -> None:
    while data:
        data = data[os.write(stdout, data) :]


class _Signalled(SystemExit):
    pass


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """The terminal passes every key on; whatever happens inside, it is as before afterwards."""

    def ended(signum: int, frame: FrameType | None) -> None:
        raise _Signalled(128 + signum)

    before = termios.tcgetattr(terminal)
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    handlers = {signum: signal.signal(signum, ended) for signum in signals}
    try:
        tty.setraw(terminal, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
