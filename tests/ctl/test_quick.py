"""xenpvctl run: the definition it writes, and how it ends."""

from __future__ import annotations

import fcntl
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ctl.conftest import Xenpvctl
from tests.ctl.terminal import Terminal
from xenpvd import config
from xenpvd.ctl.output import Failure
from xenpvd.ctl.quick import Disk, Wanted, _copy, definition, parse_disks

WANTED = Wanted("vmlinuz", None, (), 512, 1, None, None, False, "auto")


@pytest.mark.parametrize(
    ("texts", "disks"),
    [
        (["/a.img"], [Disk("/a.img", "xvda")]),
        (["/a.img,ro", "/b"], [Disk("/a.img", "xvda", "ro"), Disk("/b", "xvdb")]),
        (["/a", "/b,xvda"], [Disk("/a", "xvdb"), Disk("/b", "xvda")]),
        (["/a,xvdc1,ro"], [Disk("/a", "xvdc1", "ro")]),
        (["/a,ro,xvdc"], [Disk("/a", "xvdc", "ro")]),
        (["/odd,name.img,rw"], [Disk("/odd,name.img", "xvda")]),
    ],
)
def test_parse_disks(texts: list[str], disks: list[Disk]) -> None:
    assert parse_disks(tuple(texts)) == disks


def test_definition_is_what_the_daemon_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = 'a"b\\c\x7f\t\u00e9\N{GRINNING FACE}'
    wanted = Wanted("vmlinuz", "initrd", (), 768, 2, odd, None, False, "shim")
    text = definition(wanted, "quick-otter", [Disk(f"/{odd}", "xvdb", "ro")])
    found = config.parse(tomllib.loads(text), "it")
    assert found == config.GuestConfig(
        name="quick-otter",
        memory=768,
        vcpus=2,
        kernel=f"{tmp_path}/vmlinuz",
        ramdisk=f"{tmp_path}/initrd",
        cmdline=odd,
        shim=config.ShimConfig(path=f"{tmp_path}/shim"),
        disk=(config.DiskConfig(vdev="xvdb", target=f"/{odd}", access="ro"),),
    )


def test_default_command_line() -> None:
    assert tomllib.loads(definition(WANTED, "a", []))["cmdline"] == "console=hvc0"
    disks = [Disk("/a", "xvda")]
    assert tomllib.loads(definition(WANTED, "a", disks))["cmdline"] == "console=hvc0 root=/dev/xvda"


def test_shapes() -> None:
    pvh = config.parse(tomllib.loads(definition(replace(WANTED, kind="pvh"), "a", [])), "it")
    assert pvh.type == "pvh"
    disks = [Disk("/a", "xvda")]
    grub = config.parse(tomllib.loads(definition(replace(WANTED, kernel="pvgrub"), "a", disks)), "it")
    assert (grub.kernel, grub.cmdline) == ("pvgrub", "")
    named = tomllib.loads(definition(replace(WANTED, kernel="pvgrub", cmdline="x"), "a", disks))
    assert named["cmdline"] == "x"


def test_copy(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    with image.open("wb") as file:
        file.truncate(1 << 24)
        file.write(b"data")
    copy = _copy(Disk(str(image), "xvda"), tmp_path)
    assert Path(copy.target).read_bytes() == image.read_bytes()
    assert Path(copy.target).stat().st_blocks < 1000, "sparse"
    assert _copy(Disk(str(image), "xvdb", "ro"), tmp_path).target == str(image)
    with pytest.raises(Failure, match="cannot copy /none: this disk is missing") as fault:
        _copy(Disk("/none", "xvdc"), tmp_path)
    assert "TMPDIR" not in fault.value.message
    with pytest.raises(Failure, match="TMPDIR says"):
        _copy(Disk(str(image), "xvdc"), tmp_path / "none")


ARGS = ["run", "--kernel", "/k", "--name", "quick"]


@pytest.fixture
def terminal(fake_daemon: None, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return Terminal(run_dir)


def test_the_user_leaves(terminal: Terminal, run_dir: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * 512)
    with terminal(*ARGS, "-x", "--disk", str(image)) as session:
        session.expect("guest quick, 512 MiB, 1 vCPU; changes to the disks are dropped")
        session.expect("login: ")
        log = (run_dir / "quick" / "xenpvd.log").read_text()
        assert 'target = "' + str(image) not in log, "the guest has a copy"
        session.type(b"\x1d")
        session.expect("shutting quick down")
        assert session.end() == 0
    assert not list(run_dir.iterdir())
    assert not list(tmp_path.glob("xenpvd-run-*"))


def test_the_guest_powers_off(terminal: Terminal, run_dir: Path) -> None:
    with terminal(*ARGS) as session:
        session.expect("login: ")
        session.type(b"poweroff\r")
        session.expect("reboot: Power down")
        assert session.end() == 0
    assert not list(run_dir.iterdir())


def test_the_guest_crashes(terminal: Terminal, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "crash")
    with terminal(*ARGS) as session:
        session.expect("quick crashed: crash: BUG")
        session.expect("(XEN) Domain 0 crashed\\x1b[2J")
        assert session.end() == 1
    assert not list(run_dir.iterdir())


def test_it_does_not_start(terminal: Terminal, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "refuse")
    with terminal(*ARGS) as session:
        session.expect("memory: too small")
        assert session.end() == 2
    assert not list(run_dir.iterdir())


def test_killed_while_it_watches(terminal: Terminal, run_dir: Path) -> None:
    with terminal(*ARGS) as session:
        session.expect("login: ")
        session.process.terminate()
        assert session.end() == 128 + 15
    assert not list(run_dir.iterdir()), "no daemon, no folder is left"


@pytest.mark.parametrize("how", ["busy", "refuse"])
def test_another_guest_of_that_name_keeps_its_folder(
    terminal: Terminal, run_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It has the lock, and does not answer yet."""
    folder = run_dir / "quick"
    folder.mkdir()
    (folder / "xenpvd.log").write_text("its own\n")
    (folder / "rpc.sock").touch()
    monkeypatch.setenv("FAKE_DAEMON", how)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with terminal(*ARGS) as session:
            session.expect("did not start")
            assert session.end() == {"busy": 1, "refuse": 2}[how]
    assert {path.name for path in folder.iterdir()} == {"lock", "rpc.sock", "xenpvd.log"}
    assert (folder / "xenpvd.log").read_text().startswith("its own\n")


def test_no_lock_is_left(terminal: Terminal, run_dir: Path) -> None:
    (run_dir / "quick").mkdir()
    (run_dir / "quick" / "lock").touch()
    with terminal(*ARGS) as session:
        session.expect("login: ")
        session.type(b"\x1d")
        assert session.end() == 0
    assert not list(run_dir.iterdir())


def test_a_name_that_is_too_long(xenpvctl: Xenpvctl) -> None:
    said = xenpvctl("run", "--kernel", "/k", "--name", "a" * 64, status=2).stderr
    assert "63 characters at most" in said
