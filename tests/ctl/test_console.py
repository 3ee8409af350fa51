"""The terminal on the console: keys, pipes, and the way out."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon
from tests.ctl.terminal import MAIN, PYTHON, Terminal, at_once, late_signal
from xenpvd.ctl import console as terminal_module
from xenpvd.ctl.console import (
    LINGER,
    QUIET,
    TICK,
    TYPED_MAX,
    End,
    _Carry,
    ended_by_signals,
    parse_escape,
    spell,
)

#: what a terminal's first process has, and is hung up with it
LEADER = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "


@pytest.fixture
def terminal(run_dir: Path, daemon: Daemon) -> Terminal:
    daemon.do(lambda: daemon.service.console.print(b"login: "))
    return Terminal(run_dir)


@pytest.mark.parametrize(
    ("text", "key"), [("^]", 0x1D), ("^A", 1), ("^a", 1), ("^@", 0), ("^_", 0x1F), ("~", 0x7E)]
)
def test_escape_keys(text: str, key: int) -> None:
    assert parse_escape(text) == key
    assert spell(key) == text.upper()


@pytest.mark.parametrize("text", ["", "^", "^^^", "^1", "none", "é"])
def test_no_escape_keys(text: str) -> None:
    if text == "^":
        assert parse_escape(text) == ord("^")
        return
    with pytest.raises(ValueError, match="is no key"):
        parse_escape(text)


def test_replay_type_leave(terminal: Terminal, daemon: Daemon) -> None:
    with terminal("console", "web1") as session:
        session.expect("connected to web1 console (read-write); leave with ^]\n")
        session.expect("login: ")
        assert session.attributes != session.before, "every key goes to the guest"
        assert not session.attributes[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        session.type(b"root\r\x03\x1a\x04")
        daemon.wait(daemon.service.console.wait_typed(b"root\r\x03\x1a\x04"))
        daemon.do(lambda: daemon.service.console.print("# grün\r\n".encode()))
        session.expect("# grün")
        session.type(b"last\x1dnot this")
        session.expect("left web1 console")
        assert session.end() == 0
    daemon.wait(daemon.service.console.wait_typed(b"last"))
    assert b"not this" not in daemon.service.console.typed


def test_another_escape_key(terminal: Terminal, daemon: Daemon) -> None:
    with terminal("console", "web1", "-e", "^A") as session:
        session.expect("leave with ^A")
        session.expect("login: ")
        session.type(b"\x1d")
        daemon.wait(daemon.service.console.wait_typed(b"\x1d"))
        session.type(b"\x01")
        assert session.end() == 0


def test_read_only_and_steal(terminal: Terminal, daemon: Daemon) -> None:
    with terminal("console", "web1") as first:
        first.expect("login: ")
        with terminal("console", "web1", "--ro") as reader:
            reader.expect("(read-only, 1 other viewer)")
            reader.expect("login: ")
            reader.type(b"unheard\x1d")
            assert reader.end() == 0
        with terminal("console", "web1") as second:
            second.expect("has it. Attach with mode steal or ro.")
            assert second.end() == 1
        with terminal("console", "web1", "--steal") as third:
            third.expect("login: ")
            third.type(b"heard")
            daemon.wait(daemon.service.console.wait_typed(b"heard"))
            third.type(b"\x1d")
            third.end()
        first.type(b"\x1d")
        assert first.end() == 0
    assert daemon.service.console.typed == b"heard"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(terminal: Terminal, signum: signal.Signals) -> None:
    with terminal("console", "web1") as session:
        session.expect("login: ")
        session.process.send_signal(signum)
        assert session.end() == 128 + signum


def test_the_daemon_ends(terminal: Terminal, daemon: Daemon) -> None:
    with terminal("console", "web1") as session:
        session.expect("login: ")
        daemon.end()
        session.expect("Power down")
        session.expect("web1 is gone")
        assert session.end() == 0


def test_cut_off_while_the_guest_runs(terminal: Terminal, daemon: Daemon) -> None:
    with terminal("console", "web1") as session:
        session.expect("login: ")
        daemon.do(daemon.service.console.close)
        session.expect("was cut off")
        assert session.end() == 1


def piped(run_dir: Path, *args: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "xenpvd.ctl.cli", "--run-dir", str(run_dir), "console", "web1", *args]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=20)


def test_pipes(run_dir: Path, daemon: Daemon) -> None:
    """No terminal: bytes as they are, also the escape key; it ends with stdin, once the guest is quiet."""
    daemon.service.console.echo = True
    typed = bytes(range(256)) * 2000
    done = piped(run_dir, stdin=typed)
    assert (done.returncode, done.stdout, done.stderr) == (0, typed, b"")
    assert daemon.service.console.typed == typed


def test_a_bad_escape_key(run_dir: Path, daemon: Daemon) -> None:
    done = piped(run_dir, "-e", "ctrl-a", stdin=b"")
    assert done.returncode == 2
    assert b"is no key" in done.stderr


@pytest.mark.parametrize(
    ("since", "seen"),
    [("7", b"789"), ("-4", b"6789"), ("-99", b"0123456789")],
)
def test_since(run_dir: Path, daemon: Daemon, since: str, seen: bytes) -> None:
    daemon.do(lambda: daemon.service.console.print(b"0123456789"))
    assert piped(run_dir, "--since", since, stdin=b"").stdout == seen


class Typist:
    """Writes ``keys`` to a pipe; ``ours`` is the console's socket; nobody reads its other end, ``guest``."""

    def __init__(self, keys: bytes) -> None:
        self.ours, self.guest = socket.socketpair()
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.stdin, self._keys_in = os.pipe()
        self._threads = [threading.Thread(target=self._write, args=(keys,))]
        self._threads[0].start()

    def _write(self, keys: bytes) -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._keys_in, "wb") as pipe:
            pipe.write(keys)

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, act)
        self._threads.append(timer)
        timer.start()

    def carry(self, escape: int | None) -> End:
        out = os.open("/dev/null", os.O_WRONLY)
        try:
            return _Carry(self.ours, self.stdin, out, escape, True, True).run(b"", None, lambda: False)
        finally:
            os.close(out)

    def close(self) -> None:
        os.close(self.stdin)
        for thread in self._threads:
            if isinstance(thread, threading.Timer):
                thread.cancel()
            thread.join(10)
        self.ours.close()
        self.guest.close()


@contextlib.contextmanager
def typing(keys: bytes) -> Iterator[Typist]:
    typist = Typist(keys)
    try:
        yield typist
    finally:
        typist.close()


def test_the_way_out_while_the_guest_takes_no_input(capfd: pytest.CaptureFixture[str]) -> None:
    with typing(b"x" * (4 * TYPED_MAX) + b"\x1d") as typist:
        typist.later(3, lambda: typist.guest.shutdown(socket.SHUT_RDWR))
        assert typist.carry(0x1D) is End.ESCAPE
    assert capfd.readouterr().err.count("the guest takes no input; what you type is dropped") == 1


@pytest.mark.parametrize("size", [TYPED_MAX // 2, 4 * TYPED_MAX])
def test_a_pipe_waits_for_the_guest(size: int, no_collection: None) -> None:
    """Nothing is dropped, and waiting takes no processor time: before the end of stdin and after it."""
    keys = os.urandom(size)
    took = bytearray()

    def take() -> None:
        while len(took) < size and (data := typist.guest.recv(65536)):
            took.extend(data)

    with typing(keys) as typist:
        typist.later(QUIET + 0.5, take)
        begin = time.thread_time()
        assert typist.carry(None) is End.INPUT
        assert time.thread_time() - begin < 0.2
    assert took == keys


def test_stopped_and_continued(terminal: Terminal, daemon: Daemon) -> None:
    """The shell has made the terminal its own meanwhile."""
    with terminal("console", "web1") as session:
        session.expect("login: ")
        raw = session.attributes
        session.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, session.process.pid, os.WSTOPPED | os.WNOWAIT)
        session.reset()
        session.process.send_signal(signal.SIGCONT)
        session.type(b"x")
        daemon.wait(daemon.service.console.wait_typed(b"x"))
        assert session.attributes == raw
        session.type(b"\x1d")
        assert session.end() == 0


def test_signals_that_are_ignored_stay_so() -> None:
    """As nohup makes it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_stdout(terminal: Terminal, daemon: Daemon, run_dir: Path) -> None:
    command = [PYTHON, "-c", MAIN, sys.executable, "--run-dir", str(run_dir), "console", "web1"]
    found = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_a_stdout_that_does_not_wait(daemon: Daemon, run_dir: Path) -> None:
    text = b"x" * (1 << 19)
    daemon.do(lambda: daemon.service.console.print(text))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [PYTHON, "-c", MAIN, sys.executable, "--run-dir", str(run_dir), "console", "web1", "--ro"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writing) as process:
        os.close(writing)
        seen = 0
        while seen < len(text):
            data = os.read(reading, 1 << 16)
            assert data
            seen += len(data)
        process.terminate()
    os.close(reading)


def test_the_daemon_ends_and_is_still_there(terminal: Terminal, daemon: Daemon) -> None:
    """Its log takes a while."""
    with terminal("console", "web1") as session:
        session.expect("login: ")
        daemon.do(lambda: daemon.service.events.publish("daemon.stopping"))
        daemon.do(daemon.service.console.close)
        session.expect("web1 is gone")
        assert session.end() == 0


class Late:
    """A poll before which a signal comes that Python sees behind it."""

    def __init__(self) -> None:
        self._poll = REAL_POLL()
        self.register, self.unregister = self._poll.register, self._poll.unregister

    def poll(self, wait: float | None = None) -> list[tuple[int, int]]:
        assert wait is not None and wait <= TICK * 1000
        with late_signal():
            return self._poll.poll(wait)


REAL_POLL = select.poll


def test_a_signal_just_before_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "poll", Late)
    with (
        typing(b"") as typist,
        ended_by_signals(),
        pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)),
    ):
        typist.ours.setblocking(False)
        _Carry(typist.ours, typist.stdin, 1, None, False, True).run(b"", None, lambda: False)


def test_who_was_typed_to_for_long_is_still_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that takes a long file slowly answers its end."""
    clock = [0.0]
    monkeypatch.setattr(terminal_module.time, "monotonic", lambda: clock[0])
    with typing(b"x" * TYPED_MAX) as typist:
        reading, writing = os.pipe()
        carry = _Carry(typist.ours, typist.stdin, writing, None, True, True)
        end, took = carry._end, 0

        def ended(why: End) -> None:
            end(why)
            clock[0] += LINGER + 1  # until it has taken the rest
            taking.start()

        def take() -> None:
            nonlocal took
            while took < TYPED_MAX:
                took += len(typist.guest.recv(65536))
            typist.guest.sendall(b"done")
            while not os.read(reading, 4096).endswith(b"done"):
                pass
            clock[0] += LINGER + 1

        taking = threading.Thread(target=take)
        monkeypatch.setattr(carry, "_end", ended)
        assert carry.run(b"", None, lambda: False) is End.INPUT
        os.close(writing)
        taking.join(10)
        assert took == TYPED_MAX and not taking.is_alive(), "its answer was heard"
        os.close(reading)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_at_once_leave_the_terminal_as_it_was(terminal: Terminal, second: signal.Signals) -> None:
    with terminal("console", "web1") as session:
        session.expect("login: ")
        at_once(session.process, signal.SIGHUP, second)
        assert session.end() == 128 + signal.SIGHUP


def test_a_terminal_that_goes_away_ends_it_without_a_word(run_dir: Path, daemon: Daemon) -> None:
    """The kernel sends SIGHUP, and SIGCONT behind it."""
    master, slave = os.openpty()
    command = [PYTHON, "-c", LEADER + MAIN, sys.executable, "--run-dir", str(run_dir), "console", "web1"]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        os.close(slave)
        assert process.stderr is not None and process.stderr.readline().startswith(b"connected to")
        daemon.do(lambda: daemon.service.console.print(b"login: "))
        while b"login: " not in os.read(master, 4096):
            pass
        os.close(master)
        assert (process.stderr.read(), process.wait()) == (b"", 128 + signal.SIGHUP)
