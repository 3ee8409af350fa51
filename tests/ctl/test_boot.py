"""start, check, doctor as verbs."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd import config, paths
from xenpvd.ctl import boot
from xenpvd.ctl.rundir import RunDir
from xenpvd.errors import StateError
from xenpvd.views import Runstate


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path])
    path = tmp_path / "web1.toml"
    path.write_text('kernel = "/boot/vmlinuz"\nmemory = 768\n')
    return path


def quit_(run_dir: Path) -> None:
    with RunDir(run_dir).connect("web1") as client:
        client.call("daemon.quit", {"guest": "destroy"})
        list(client.notifications())


@pytest.mark.usefixtures("fake_daemon")
def test_start(xenpvctl: Xenpvctl, run_dir: Path, file: Path) -> None:
    assert xenpvctl("start", "web1").stdout == "web1 is running: shim after 0.20 s\n"
    assert "web1 is running already." in xenpvctl("start", str(file), status=1).stderr
    quit_(run_dir)


@pytest.mark.usefixtures("fake_daemon")
def test_start_paused_on_an_accelerator(xenpvctl: Xenpvctl, run_dir: Path, file: Path) -> None:
    assert (
        xenpvctl("start", "web1", "--paused", "--accel", "kvm", "--http", "--qmp").stdout
        == "web1 is paused\n"
    )
    assert "options: --accel kvm --http --qmp --no-start\n" in RunDir(run_dir).log("web1").read_text()
    config = xenpvctl.json("call", "web1", "guest.config")
    assert (config["accel"], config["memory"]) == ("kvm", 768)
    assert "web1 is paused already." in xenpvctl("start", str(file), status=1).stderr
    assert xenpvctl("resume", "web1").stdout == "web1 is running\n"
    quit_(run_dir)


@pytest.mark.usefixtures("fake_daemon")
def test_start_paused_fails(
    xenpvctl: Xenpvctl, run_dir: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon that was started for it does not stay."""
    monkeypatch.setenv("FAKE_DAEMON", "refuse-start")
    assert "out of memory" in xenpvctl("start", "web1", "--paused", status=1).stderr
    xenpvctl("status", "web1", status=3)
    xenpvctl("start", "web1", "--accel", "tcg", status=2)


@pytest.mark.usefixtures("fake_daemon")
@pytest.mark.parametrize(
    ("how", "status", "words"),
    [("refuse", 2, "memory: too small"), ("die", 1, "out of luck"), ("silent", 4, "not ready")],
)
def test_start_fails(
    xenpvctl: Xenpvctl, file: Path, monkeypatch: pytest.MonkeyPatch, how: str, status: int, words: str
) -> None:
    monkeypatch.setenv("FAKE_DAEMON", how)
    timeout = ["--timeout", "0.05"] if how == "silent" else []
    assert words in xenpvctl("start", str(file), *timeout, status=status).stderr


@pytest.mark.usefixtures("fake_daemon")
@pytest.mark.parametrize(("says", "left"), [("a little", []), ("a lot", ["web1"])])
def test_a_start_that_fails_leaves_what_it_has_not_told(
    xenpvctl: Xenpvctl,
    run_dir: Path,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: str,
    left: list[str],
) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "refuse")
    if says == "a lot":
        file.write_text(file.read_text() + "#\n" * 20)  # the fake prints it
    said = xenpvctl("start", str(file), status=2).stderr
    assert [path.name for path in run_dir.iterdir()] == left
    assert (f"(the last lines of {run_dir}/web1/xenpvd.log)" in said) is bool(left)
    monkeypatch.setenv("FAKE_DAEMON", "")
    (run_dir / "web1").mkdir(exist_ok=True)
    (run_dir / "web1" / "xenpvd.log").write_text("of the life before\n")
    file.write_text("kernel = 3\n")
    monkeypatch.setenv("FAKE_DAEMON", "refuse")
    xenpvctl("start", str(file), status=2)
    assert (run_dir / "web1" / "xenpvd.log").read_text().startswith("of the life before\n")


def test_a_start_of_nothing_leaves_nothing(
    xenpvctl: Xenpvctl, run_dir: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/none/python")
    said = xenpvctl("start", str(file), status=1).stderr
    assert said == "xenpvctl: cannot start web1: /none/python: No such file or directory.\n"
    assert not list(run_dir.iterdir())


def test_start_over_a_daemon_at_rest(xenpvctl: Xenpvctl, service: FakeService, file: Path) -> None:
    service.state = Runstate.DEFINED
    assert xenpvctl.json("start", "web1", "--wait", "devices")["memory_mib"] == 768
    assert service.done == ["guest_start", "guest_wait"]
    service.state = Runstate.STOPPED
    assert xenpvctl("start", "web1", "--paused", "--accel", "kvm-xen").stdout == "web1 is paused\n"
    assert service.config.accel == "kvm-xen"
    assert "without --http" in xenpvctl("start", "web1", "--http", status=1).stderr
    assert "without --qmp" in xenpvctl("start", "web1", "--qmp", status=1).stderr


def test_start_of_one_that_is_there_is_no_failed_start(
    xenpvctl: Xenpvctl, service: FakeService, file: Path
) -> None:
    """To programs, by its code and reason."""
    for options in ([], ["--qmp"]):
        error = xenpvctl.json("start", "web1", *options, status=1)["error"]
        assert (error["code"], error["reason"], error["data"]["state"]) == (1001, "GUEST_STATE", "running")
        assert "already" in error["message"]


def test_start_of_a_guest_that_waits_for_its_restart(
    xenpvctl: Xenpvctl, service: FakeService, file: Path
) -> None:
    service.state, service.reason = Runstate.STARTING, "crash"
    assert "web1 is starting already." in xenpvctl("start", "web1", status=1).stderr
    service.reason = "restart in 8 s after crash"
    xenpvctl("start", "web1")
    assert service.done == ["guest_start", "guest_wait"]


def test_start_tells_what_a_crash_left(xenpvctl: Xenpvctl, service: FakeService, file: Path) -> None:
    service.state = Runstate.STOPPED
    fault = StateError("devices will not come: the guest is crashed.", "crashed", [])
    fault.data |= {"console_tail": "Kernel panic\n", "xen_tail": "(XEN) gone"}
    service.faults["guest_wait"] = fault
    said = xenpvctl("start", "web1", "--wait", "devices", status=1).stderr
    assert said.endswith("--- the guest's console, last:\nKernel panic\n--- Xen's log, last:\n(XEN) gone\n")


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("kernel =", 2, "no valid TOML"),
        ("memory = " + "1" * 5000, 2, "no valid TOML"),
        ("memory = " + "[" * 5000, 2, "no valid TOML"),
        ("name = 'Web 1'", 2, "no guest can be called 'Web 1'"),
        ("name = 1", 2, "no guest can be called 1"),
        (None, 2, "cannot read"),
    ],
)
def test_start_of_no_definition(
    xenpvctl: Xenpvctl, tmp_path: Path, text: str | None, status: int, words: str
) -> None:
    file = tmp_path / "bad.toml"
    if text is not None:
        file.write_text(text)
    assert words in xenpvctl("start", str(file), status=status).stderr


def test_start_of_a_pipe(xenpvctl: Xenpvctl, tmp_path: Path) -> None:
    pipe = tmp_path / "web1.toml"
    os.mkfifo(pipe)
    for path in (Path("/dev/null"), pipe):
        assert "no regular file" in xenpvctl("start", f"{path}", status=2).stderr


@pytest.mark.parametrize("name", ["a" * 64, "a" * 300])
def test_start_of_a_name_that_is_too_long(xenpvctl: Xenpvctl, file: Path, name: str) -> None:
    assert "63 characters at most" in xenpvctl("start", name, status=3).stderr
    file.write_text(f'name = "{name}"\n')
    assert "63 characters at most" in xenpvctl("start", str(file), status=2).stderr
    assert "63 characters at most" in xenpvctl("status", name, status=3).stderr


def test_start_of_a_name_without_a_file(xenpvctl: Xenpvctl, file: Path) -> None:
    said = xenpvctl("start", "web9", status=3).stderr
    assert said == (
        f"xenpvctl: no definition of web9: there is no {file.parent}/web9.toml. "
        "Write it, or give another file.\n"
    )


@pytest.mark.usefixtures("fake_daemon")
def test_start_again_by_name(
    xenpvctl: Xenpvctl, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started from a file that is not among the definitions."""
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path / "none"])
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('kernel = "/k"\nname = "web1"\nmemory = 99\n')
    xenpvctl("start", "mine.toml")
    quit_(run_dir)
    monkeypatch.chdir("/")
    assert "xenpvctl start web1\n" in xenpvctl("status", "web1", status=3).stderr
    assert xenpvctl("start", "web1").stdout == "web1 is running: shim after 0.20 s\n"
    assert "memory = 99" in RunDir(run_dir).log("web1").read_text()
    assert xenpvctl("start", "web1", status=1).stderr == "xenpvctl: web1 is running already.\n"
    quit_(run_dir)


@pytest.mark.usefixtures("fake_daemon")
def test_start_by_name_of_a_file_that_is_gone(
    xenpvctl: Xenpvctl, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path / "none"])
    file = tmp_path / "mine.toml"
    file.write_text('kernel = "/k"\nname = "web1"\n')
    xenpvctl("start", str(file))
    quit_(run_dir)
    file.unlink()
    for verb in ("start", "check"):
        assert xenpvctl(verb, "web1", status=3).stderr == (
            f"xenpvctl: web1 was last started from {file}, which is gone. Give its file.\n"
        )


def test_start_where_the_log_is_a_link(xenpvctl: Xenpvctl, run_dir: Path, tmp_path: Path, file: Path) -> None:
    log = RunDir(run_dir).log("web1")
    log.parent.mkdir()
    log.symlink_to(tmp_path / "victim")
    said = f"xenpvctl: cannot start web1: {log}: it is no regular file.\n"
    assert xenpvctl("start", str(file), status=1).stderr == said
    assert said in xenpvctl("run", "--kernel", "/k", "--name", "web1", status=1).stderr
    assert not (tmp_path / "victim").exists()


def test_start_of_a_daemon_whose_definition_is_not_found(
    xenpvctl: Xenpvctl, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows it itself."""
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path])
    before = service.config
    service.state = Runstate.STOPPED
    xenpvctl("start", "web1")
    assert service.config is before
    service.state = Runstate.STOPPED
    xenpvctl("start", "web1", "--accel", "kvm")
    assert service.config == before.model_copy(update={"accel": "kvm"})


def test_start_of_a_dead_guest_without_a_file(
    xenpvctl: Xenpvctl, dead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path])
    assert "gone is dead" in xenpvctl("start", dead, status=3).stderr


def test_check_prints_every_problem(xenpvctl: Xenpvctl, tmp_path: Path) -> None:
    """A fault of the file is status 2, as the daemon's would be; what the host has not is 1."""
    file = tmp_path / "web1.toml"
    file.write_text('memroy = 5\n[[disk]]\nvdev = "xvda"\ntarget = "/none"\naccess = "r"\n')
    found = xenpvctl.json("check", str(file), status=2)["error"]["data"]["errors"]
    assert {problem["loc"] for problem in found} == {"kernel", "memroy", "disk.0.access"}
    said = xenpvctl("check", str(file), status=2).stderr
    assert f"{file}: disk.0.access: " in said
    file.write_text(f'kernel = "{tmp_path}/none"\n[[disk]]\nvdev = "xvda"\ntarget = "/none"\n')
    found = xenpvctl.json("check", str(file), status=1)["error"]["data"]["errors"]
    assert {"kernel", "disk.0.target"} <= {problem["loc"] for problem in found}
    assert "cannot read" in xenpvctl("check", str(tmp_path / "missing.toml"), status=2).stderr


def test_check_of_what_works(xenpvctl: Xenpvctl, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenpvd.check.problems", lambda config: [])
    assert xenpvctl("check", str(file)).stdout == f"ok    {file}: web1, 768 MiB, 1 vCPU, no disks\n"
    assert xenpvctl.json("check", str(file)) == {"problems": []}


def test_check_names_the_file_as_it_was_typed(
    xenpvctl: Xenpvctl, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpvd.check.problems", lambda config: [("memory", "too much")])
    monkeypatch.chdir(file.parent)
    assert xenpvctl("check", "web1.toml", status=1).stderr == "xenpvctl: web1.toml: memory: too much\n"
    assert xenpvctl("check", "web1", status=1).stderr == f"xenpvctl: {file}: memory: too much\n"


def test_doctor(xenpvctl: Xenpvctl, monkeypatch: pytest.MonkeyPatch, daemon: Daemon) -> None:
    from xenpvd.ctl.doctor import Finding

    findings = [Finding("ok", "a"), Finding("warn", "b")]
    monkeypatch.setattr("xenpvd.ctl.doctor.examine", lambda path: findings)
    assert xenpvctl("doctor").stdout == "ok    a\nwarn  b\n"
    findings.append(Finding("FAIL", "c: mend it"))
    assert xenpvctl("doctor", status=1).stdout.endswith("FAIL  c: mend it\n")
    assert xenpvctl.json("doctor", status=1)[2] == {"verdict": "FAIL", "text": "c: mend it"}


@pytest.mark.parametrize("phase", ["redy", "", "console:", "running"])
def test_what_cannot_be_waited_for_starts_nothing(xenpvctl: Xenpvctl, tmp_path: Path, phase: str) -> None:
    said = xenpvctl("start", str(tmp_path / "web1.toml"), "--wait", phase, status=2).stderr
    assert "cannot be waited for. created, shim, kernel, xenbus, devices, ready, console:TEXT or" in said


def test_run_takes_what_a_definition_takes() -> None:
    """Else the message would be about a file that nobody has written."""
    ranges = {param.name: param.type for param in boot.run.params if isinstance(param.type, click.IntRange)}
    assert (ranges["memory"].min, ranges["memory"].max) == (config.MEMORY_MIN_MIB, config.MEMORY_MAX_MIB)
    assert (ranges["vcpus"].min, ranges["vcpus"].max) == (1, config.VCPUS_MAX)
