"""A terminal on a guest's console: raw bytes both ways until the escape key; then it is as before."""

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

#: Bytes typed ahead of what the guest takes.
TYPED_MAX = 65536

#: Seconds that one wait takes at most: Python sees a signal that comes just before it only behind it
TICK = 0.5

#: After the end of a piped stdin the answer to what was typed may take this long, in seconds, to come; and a
#: guest that is never quiet is listened to for so long.
QUIET = 0.5
LINGER = 5.0


class End(Enum):
    """Why a conversation ended."""

    ESCAPE = "the escape key"
    INPUT = "the end of stdin"
    CLOSED = "the daemon"
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
    until_eof: bool = True,
    watch: int | None = None,
    over: Callable[[], bool] = lambda: False,
) -> End:
    """Carry stdin to ``sock`` and ``sock`` (``pending`` came from it already) to stdout.

    Without ``keyboard`` only the escape key is looked for. The end of stdin ends it unless ``until_eof`` is
    False. ``over`` is asked when the descriptor ``watch`` can be read: True ends it, once all is quiet.
    """
    # <&- leaves none
    stdin = sys.stdin.fileno() if sys.stdin is not None else os.open(os.devnull, os.O_RDONLY)
    stdout = sys.stdout.fileno() if sys.stdout is not None else os.open(os.devnull, os.O_WRONLY)
    on_terminal = os.isatty(stdin)
    if on_terminal:
        print(f"connected to {name}; leave with {spell(escape)}", file=sys.stderr, flush=True)
    carry = _Carry(sock, stdin, stdout, escape if on_terminal else None, keyboard, until_eof)
    with raw(stdin) if on_terminal else contextlib.nullcontext():
        end = carry.run(pending, watch, over)
    if on_terminal:
        print(f"\nleft {name}", file=sys.stderr, flush=True)
    return end


class _Carry:
    """The loop between the terminal and the guest: one poll, and nothing that blocks but stdout."""

    def __init__(
        self,
        sock: socket.socket,
        stdin: int,
        stdout: int,
        escape: int | None,
        keyboard: bool,
        until_eof: bool,
    ) -> None:
        sock.setblocking(False)
        self._sock, self._stdin, self._stdout = sock, stdin, stdout
        self._escape = escape
        self._keyboard = keyboard
        self._until_eof = until_eof
        self._typed = bytearray()
        self._listening = False
        self._dropping = False
        self._ending: End | None = None  # it ends when all is quiet
        self._quiet_at = 0.0
        self._ends_at = 0.0

    def run(self, pending: bytes, watch: int | None, over: Callable[[], bool]) -> End:
        poller = select.poll()
        if self._keyboard or self._escape is not None:  # a read-only pipe: stdin is not ours to eat
            self._listening = True
        if watch is not None:
            poller.register(watch, select.POLLIN)
        _write_all(self._stdout, pending)
        asked = watch is not None and over()  # what it tells may have arrived before
        while True:
            if asked and watch is not None:
                poller.unregister(watch)
                watch = None
                self._end(End.WATCHED)
            if self._ending is not None and not self._typed and time.monotonic() >= self._over_at:
                return self._ending
            poller.register(self._sock, select.POLLIN | (select.POLLOUT if self._typed else 0))
            if self._listening and (self._escape is not None or len(self._typed) < TYPED_MAX):
                poller.register(self._stdin, select.POLLIN)
            else:  # a pipe can wait until the guest takes more; the way out of a terminal can not
                with contextlib.suppress(KeyError):
                    poller.unregister(self._stdin)
            wait = TICK
            if self._ending is not None and not self._typed:
                wait = min(TICK, max(0.0, self._over_at - time.monotonic()))
            ready = dict(poller.poll(wait * 1000))
            if self._sock.fileno() in ready and not self._serve_guest(ready[self._sock.fileno()]):
                return self._ending or End.CLOSED
            if self._stdin in ready and not self._serve_keys():
                return End.ESCAPE
            asked = watch is not None and watch in ready and over()

    def _serve_guest(self, events: int) -> bool:
        if events & select.POLLOUT:
            self._send()
        if events & ~select.POLLOUT:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            _write_all(self._stdout, data)
            self._quiet_at = time.monotonic() + QUIET
            return bool(data)
        return True

    def _serve_keys(self) -> bool:
        try:
            data = os.read(self._stdin, 4096)
        except OSError:  # EIO: the terminal has gone
            data = b""
        if not data:
            self._listening = False
            if self._until_eof:
                self._end(End.INPUT)
            return True
        head, left, _ = (
            data.partition(bytes([self._escape])) if self._escape is not None else (data, b"", b"")
        )
        if self._keyboard:
            self._type(head)
        return not left

    def _type(self, data: bytes) -> None:
        self._typed += data
        self._send()
        if self._escape is not None and len(self._typed) > TYPED_MAX:
            del self._typed[TYPED_MAX:]
            if not self._dropping:
                print("\r\nthe guest takes no input; what you type is dropped\r", file=sys.stderr, flush=True)
            self._dropping = True

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            del self._typed[: self._sock.send(self._typed)]
            self._quiet_at = time.monotonic() + QUIET
            self._ends_at = time.monotonic() + LINGER
        if not self._typed:
            self._dropping = False

    @property
    def _over_at(self) -> float:
        return min(self._quiet_at, self._ends_at)

    def _end(self, why: End) -> None:
        self._ending = why
        self._quiet_at = time.monotonic() + QUIET
        self._ends_at = time.monotonic() + LINGER


def _write_all(stdout: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(stdout, data) :]
        except BlockingIOError:  # whoever started us has made it so
            select.select((), (stdout,), ())


@contextlib.contextmanager
def ended_by_signals(again: bool = False) -> Iterator[None]:
    """Signals that would kill this process at once raise SystemExit instead: ``finally`` has its turn, which
    a second one does not end, unless it may do so ``again``. One that is ignored (``nohup``) stays so."""
    ending = False

    def ended(signum: int, frame: FrameType | None) -> None:
        nonlocal ending
        if again or not ending:
            ending = True
            raise SystemExit(128 + signum)

    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    with contextlib.ExitStack() as before:
        for signum in signals:
            if signal.getsignal(signum) != signal.SIG_IGN:
                before.enter_context(_handled(signum, ended))
        yield


@contextlib.contextmanager
def _handled(signum: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, before)


@contextlib.contextmanager
def raw(terminal: int) -> Iterator[None]:
    """The terminal passes every key on; whatever happens inside, it is as before afterwards."""
    before = termios.tcgetattr(terminal)

    def make_raw(*_: object) -> None:
        tty.setraw(terminal, termios.TCSADRAIN)

    def continued(*_: object) -> None:
        with contextlib.suppress(termios.error):  # it has gone: the kernel continues whom it tells so
            make_raw()

    with ended_by_signals():
        try:
            # who was stopped finds the terminal as the shell likes it
            with _handled(signal.SIGCONT, continued):
                make_raw()
                yield
        finally:
            with contextlib.suppress(termios.error):  # it has gone
                termios.tcsetattr(terminal, termios.TCSADRAIN, before)
