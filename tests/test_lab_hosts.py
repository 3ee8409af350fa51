"""Lab hosts, the jobs in them and who needs them, as far as that runs without a VM."""

from __future__ import annotations

import fcntl
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab import __main__ as cli
from lab import host, jobs, kvm, suite
from lab.paths import CHECKOUT
from lab.progress import LabError
from lab.suite import room_for_two
from lab.wire import EXIT, READY, RESULTS, STDERR, STDOUT, Job, frame, read_frame


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XENPVD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- jobs ----------------------------------------------------------------------------------------------


def test_frames_and_jobs_survive_the_wire() -> None:
    stream = io.BytesIO(frame(STDOUT, b"abc") + frame(EXIT, b"0") + frame(STDERR, b"cut off")[:-1])
    assert [read_frame(stream) for _ in range(4)] == [(STDOUT, b"abc"), (EXIT, b"0"), None, None]
    job = Job(["a", "b c"], "/d", "/c", 5, {"X": "ä"}, (24, 80))
    line = job.encode()
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert Job.decode(line) == job


def test_a_jobs_output_status_and_results_come_back(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("sub/file")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"hi"))
    pieces = frame(RESULTS, packed.getvalue()[:700]) + frame(RESULTS, packed.getvalue()[700:])
    said = (
        frame(STDOUT, b"one ") + frame(STDERR, b"warn") + frame(STDOUT, b"two") + pieces + frame(EXIT, b"7")
    )
    out, err = io.BytesIO(), io.BytesIO()
    assert jobs._receive(io.BytesIO(said), {STDOUT: out, STDERR: err}, tmp_path) == 7
    assert (out.getvalue(), err.getvalue()) == (b"one two", b"warn")
    assert (tmp_path / "sub" / "file").read_bytes() == b"hi"


def test_a_host_that_dies_is_not_a_job_that_ended() -> None:
    (host.folder("plain") / "console.log").write_text("Kernel panic\n")
    with pytest.raises(LabError, match=r"went away[^$]*Kernel panic"):
        jobs._receive(io.BytesIO(frame(STDOUT, b"x")), {STDOUT: io.BytesIO()}, None, "plain")


# --- /dev/kvm ------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with kvm_amd; its files can be taken away or changed. KVM's ioctls are another matter."""
    for name, path in {"DEVICE": "kvm", "CPUINFO": "cpuinfo", "MODULES": "module"}.items():
        monkeypatch.setattr(kvm, name, tmp_path / path)
    (tmp_path / "kvm").touch()
    (tmp_path / "cpuinfo").write_text("model name\t: a vmx-like thing\nflags\t\t: fpu svm lm\n")
    (tmp_path / "module" / "kvm_amd").mkdir(parents=True)
    return tmp_path


def test_a_kvm_with_the_cpus_virtualization_is_fit(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kvm.unfit() == "" and kvm.xen_hvm() == 0  # a plain one will do
    assert cli.main(["needed"]) == 1
    (machine / "module" / "kvm_amd").rename(machine / "module" / "kvm_intel")
    (machine / "cpuinfo").write_text("flags : vmx\n")
    assert kvm.unfit() == ""


def test_a_kvm_of_another_kind_is_not(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "module" / "kvm_amd").rename(machine / "module" / "kvm_pvm")
    assert "not of kvm_intel or kvm_amd" in kvm.unfit()
    (machine / "cpuinfo").write_text("model name\t: vmx svm\nflags\t\t: fpu vmmcall\n")
    assert "no vmx or svm" in kvm.unfit()
    (machine / "kvm").unlink()
    assert "No such file" in kvm.unfit()
    assert cli.main(["needed"]) == 0
    assert "No such file" in capsys.readouterr().err


# --- lab hosts -----------------------------------------------------------------------------------------


def test_no_host_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 1
    assert cli.main(["down", "--host", "plain"]) == 0
    assert capsys.readouterr().out == "no lab host (xen) is up\nno lab host (plain) was up\n"


def test_a_held_lock_means_a_running_host_of_its_kind() -> None:
    state = host.folder("plain")
    assert state.stat().st_mode & 0o777 == 0o700
    said = {"kind": "plain", "pid": 5, "port": 6, "token": "t", "code": "c"}
    (state / "host.json").write_text(json.dumps(said))
    assert host.running("plain") is None
    with (state / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert host.running("plain") == host.Host("plain", 5, 6, "t", "c")
        assert host.running("xen") is None
        (state / "host.json").write_text("")
        with pytest.raises(LabError, match="fuser"):
            host.running("plain")
    assert host.running("plain") is None


def test_a_host_of_old_code_is_replaced_when_its_jobs_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fresh = host.Host("plain", 7, 8, "t", host._code())
    monkeypatch.setattr(host, "_running", lambda kind: host.Host("plain", 5, 6, "t", "old"))
    monkeypatch.setattr(host, "_stop", lambda old: done.append(f"stopped {old.pid}"))
    monkeypatch.setattr(host, "_start", lambda kind: fresh)
    monkeypatch.setattr(host, "_wait_ready", lambda kind: None)
    with host.in_use("plain"), host.in_use("plain"):  # two jobs
        starter = threading.Thread(target=lambda: done.append(f"up {host.up('plain').pid}"))
        starter.start()
        starter.join(0.1)
        assert starter.is_alive() and done == []
    starter.join(10)
    assert done == ["stopped 5", "up 7"]


@pytest.mark.parametrize(
    ("kind", "caps", "words"),
    [
        ("xen", "0x1ff", None),
        ("xen", "0x0", "has no Xen support"),
        ("plain", "0x0", None),
        ("plain", "0x1ff", "has Xen support"),
    ],
)
def test_a_host_is_what_its_kind_says(
    kind: str, caps: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.folder(kind) / "console.log").write_text(f"{READY}, KVM_CAP_XEN_HVM={caps}\n")
    if words is None:
        host._wait_ready(kind)
    else:
        with pytest.raises(LabError, match=words):
            host._wait_ready(kind)


def meminfo(mib: int) -> str:
    return f"MemTotal:  99999999 kB\nMemFree: 10 kB\nMemAvailable:  {mib * 1024} kB\n"


def test_a_host_takes_the_memory_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert host.memory(meminfo(20000)) == 8192
    assert capsys.readouterr().err == ""
    assert host.memory(meminfo(5000)) == 5000
    assert "5000 MiB of memory are available, 8192 wanted" in capsys.readouterr().err
    with pytest.raises(LabError, match="2048 MiB of memory, 900 MiB are available"):
        host.memory(meminfo(900))


# --- make test -----------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``make test`` does; the xen host was up before, the plain one was not. A job says which it is."""
    done: list[Any] = []

    def local(argv: Sequence[str]) -> int:
        done.append(("here", *argv[3:]))
        return 0

    def job(argv: Sequence[str], kind: str, out: jobs.Output | None = None) -> int:
        done.append((kind, *argv[3:-2]))
        (out or sys.stdout.buffer).write(f"{kind} has run\n".encode())
        return 0

    monkeypatch.setattr(subprocess, "call", local)
    monkeypatch.setattr(jobs, "run", job)
    monkeypatch.setattr(host, "running", lambda kind: kind == "xen" or None)
    monkeypatch.setattr(host, "down", lambda kind: done.append(("down", kind)))
    monkeypatch.setattr(suite, "room_for_two", lambda cpus, meminfo: False)
    return done


def test_where_kvm_is_fit_all_tests_run_at_once(runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "unfit", lambda: "")
    assert suite.main() == 0
    assert runs == [("here",)]


ALL = [
    ("here", "-m", "not lab"),
    ("xen", "-m", "lab and not plain"),
    ("plain", "-m", "plain"),
    ("down", "plain"),
]


def test_elsewhere_the_lab_hosts_take_turns(runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "unfit", lambda: "no KVM")
    assert suite.main() == 0
    assert runs == ALL


IGNORED = tuple(f"--ignore={name}" for name in suite.SECOND)
AT_ONCE = [
    ("here", "-m", "not lab"),
    ("xen", "-m", "lab and not plain", *IGNORED),
    ("xen2", "-m", "lab and not plain", *suite.SECOND),
    ("plain", "-m", "plain"),
    ("down", "plain"),
    ("down", "xen2"),
]


def test_what_the_second_xen_host_runs_is_there() -> None:
    assert all((CHECKOUT / name).exists() for name in suite.SECOND)


def test_where_there_is_room_one_runs_beside_the_others_and_is_shown_last(
    runs: list[Any], monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(kvm, "unfit", lambda: "no KVM")
    monkeypatch.setattr(suite, "room_for_two", lambda cpus, meminfo: True)
    assert suite.main() == 0
    assert sorted(runs) == sorted(AT_ONCE)
    assert capfdbinary.readouterr().out.endswith(b"plain has run\nxen2 has run\nxen has run\n")


@pytest.mark.parametrize(("kind", "status"), [("xen", 3), ("plain", 4), ("xen2", 5), ("", 2)])
def test_any_part_that_fails_is_a_failure(
    runs: list[Any], monkeypatch: pytest.MonkeyPatch, kind: str, status: int
) -> None:
    monkeypatch.setattr(kvm, "unfit", lambda: "no KVM")
    monkeypatch.setattr(suite, "room_for_two", lambda cpus, meminfo: True)
    monkeypatch.setattr(jobs, "run", lambda argv, at, out=None: status if at == kind else 0)
    if not kind:
        monkeypatch.setattr(subprocess, "call", lambda argv: status)
    assert suite.main() == status


def test_where_a_part_fails_no_lab_host_is_left_over(
    runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, downed = threading.Event(), threading.Event()

    def job(argv: Sequence[str], kind: str, out: jobs.Output | None = None) -> int:
        begun.set()
        downed.wait(50)  # as a job in a lab host that goes away
        return 1

    def call(argv: Sequence[str]) -> int:
        begun.wait(50)
        return 2

    monkeypatch.setattr(kvm, "unfit", lambda: "no KVM")
    monkeypatch.setattr(suite, "room_for_two", lambda cpus, meminfo: True)
    monkeypatch.setattr(jobs, "run", job)
    monkeypatch.setattr(subprocess, "call", call)
    monkeypatch.setattr(host, "running", lambda kind: None)
    monkeypatch.setattr(host, "down", lambda kind: (runs.append(("down", kind)), downed.set()))
    assert suite.main() == 2
    assert ("down", "xen") in runs


def test_a_lab_host_that_cannot_be_had_is_told(runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: Sequence[str], kind: str, out: jobs.Output | None = None) -> int:
        if kind == "xen":
            raise LabError("it went away")
        return 0

    monkeypatch.setattr(kvm, "unfit", lambda: "no KVM")
    monkeypatch.setattr(suite, "room_for_two", lambda cpus, meminfo: True)
    monkeypatch.setattr(jobs, "run", fail)
    with pytest.raises(LabError, match="it went away"):
        suite.main()


def test_room_for_two() -> None:
    assert room_for_two(2, meminfo(16384)) and room_for_two(8, meminfo(20000))
    assert not room_for_two(1, meminfo(20000)) and not room_for_two(2, meminfo(16000))


def test_the_first_part_that_fails_is_the_last(runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "unfit", lambda: "no KVM")
    monkeypatch.setattr(jobs, "run", lambda argv, kind, out=None: 1)
    assert suite.main() == 1
    assert runs == [("here", "-m", "not lab")]
    monkeypatch.setattr(subprocess, "call", lambda argv: 2)
    assert suite.main() == 2


def test_purge_deletes_only_its_own(cache: Path) -> None:
    (cache / "assets" / "x").mkdir(parents=True)
    (cache / "mine").mkdir()
    assert cli.main(["purge"]) == 0
    assert list(cache.iterdir()) == [cache / "mine"]
