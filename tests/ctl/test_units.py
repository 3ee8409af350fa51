"""install-units: what it writes, what it says, what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ctl.conftest import Xenpvctl
from xenpvd.ctl import units

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """xenpvd and xenpvctl, installed in a folder of that name; this xenpvctl is the latter."""

    def install(name: str) -> Path:
        bin_ = tmp_path / name / "bin"
        bin_.mkdir(parents=True)
        for command in ("xenpvd", "xenpvctl"):
            (bin_ / command).write_text("#!/bin/sh\n")
            (bin_ / command).chmod(0o755)
        monkeypatch.setattr(sys, "argv", [str(bin_ / "xenpvctl")])
        return bin_ / "xenpvd"

    return install


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service could use what is installed, wherever that is."""
    monkeypatch.setattr(units, "_unreachable", lambda path: None)


@pytest.mark.usefixtures("anywhere")
def test_for_the_system(xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path]) -> None:
    daemon = installed("opt")
    (tmp_path / "root").mkdir()
    said = xenpvctl("install-units", "--root", str(tmp_path / "root")).stdout
    etc = tmp_path / "root" / "etc"
    written = sorted(path.relative_to(etc).as_posix() for path in etc.rglob("*") if path.is_file())
    assert written == [
        "systemd/system/xenpvd-gateway.service",
        "systemd/system/xenpvd-gateway.socket",
        "systemd/system/xenpvd.target",
        "systemd/system/xenpvd@.service",
        "sysusers.d/xenpvd.conf",
    ]
    assert all(f"wrote {etc / name}\n" in said for name in written)
    assert f"\nnext:\n  systemd-sysusers --root={tmp_path}/root " in said
    unit = (etc / "systemd/system/xenpvd@.service").read_text()
    assert f"\nExecStart={daemon} --config /etc/xenpvd/%i.toml " in unit
    assert f"\nExecReload={daemon.with_name('xenpvctl')} --run-dir /run/xenpvd reload %i\n" in unit
    assert unit.replace(f"{daemon.parent}/", "/usr/bin/") == (ROOT / "systemd/xenpvd@.service").read_text()
    gateway = (etc / "systemd/system/xenpvd-gateway.service").read_text()
    assert f"\nExecStart={daemon}-gateway --config /etc/xenpvd/gateway.toml " in gateway
    again = xenpvctl.json("install-units", "--root", str(tmp_path / "root"))
    assert sorted(again["written"]) == [str(etc / name) for name in written]
    assert again["daemon"] == str(daemon)
    assert again["next"][1:] == [f"systemctl --root={tmp_path}/root enable xenpvd@web1"], "not this system"


@pytest.mark.usefixtures("anywhere")
def test_for_this_system(
    xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("opt")
    monkeypatch.setattr(units, "SYSTEM", {"xenpvd.target": f"{tmp_path}/etc"})
    for root in ([], ["--root", "/"]):
        said = xenpvctl("install-units", *root).stdout
        assert "  systemctl daemon-reload\n" in said and "  systemctl enable --now xenpvd@web1 " in said


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("options", [[], ["--user"]])
def test_below_a_folder_that_is_not_there(
    xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path], options: list[str]
) -> None:
    """It was mistyped, or is not mounted."""
    installed("opt")
    said = xenpvctl("install-units", *options, "--root", str(tmp_path / "nix"), status=2).stderr
    assert f"Directory '{tmp_path}/nix' does not exist." in said
    assert not (tmp_path / "nix").exists()


def test_for_a_user(
    xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = installed("my venv")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    said = xenpvctl("install-units", "--user").stdout
    (written,) = (path for path in (tmp_path / "config").rglob("*") if path.is_file())
    assert written == tmp_path / "config/systemd/user/xenpvd@.service"
    assert f'\nExecStart="{daemon}" --config %E/xenpvd/%i.toml ' in written.read_text()
    assert f"xenpvd@web1     # runs {tmp_path}/config/xenpvd/web1.toml\n" in said
    assert "\nnext:\n  systemctl --user daemon-reload\n" in said
    (tmp_path / "my root").mkdir()
    said = xenpvctl("install-units", "--user", "--root", str(tmp_path / "my root")).stdout
    assert "\nnext, on the system that this is for:\n  systemctl --user daemon-reload\n" in said


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/opt/x/xenpvd", "/opt/x/xenpvd"),
        ("/opt/100%/xenpvd", "/opt/100%%/xenpvd"),
        ("/opt/a b/xenpvd", '"/opt/a b/xenpvd"'),
        ('/opt/a"\\/xenpvd', '"/opt/a\\"\\\\/xenpvd"'),
    ],
)
def test_the_path_in_the_unit(path: str, word: str) -> None:
    assert units._word(Path(path)) == word


def test_what_no_service_can_reach(
    xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = installed("opt")
    monkeypatch.setattr(units, "HIDDEN", (tmp_path / "opt",))
    monkeypatch.setattr(units, "SYSTEM", {"xenpvd.target": f"{tmp_path}/etc"})
    said = xenpvctl("install-units", status=1).stderr
    assert said.startswith(
        f"xenpvctl: cannot run {daemon} as a service: services see nothing of {tmp_path}/opt, and "
        f"{daemon} is needed. Install xenpvd for all: /usr/bin/python3 -m venv /opt/xenpvd, "
    )
    assert not (tmp_path / "etc").exists()
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed" / "python").write_text("")
    monkeypatch.setattr(units, "HIDDEN", ())
    assert units._unreachable(tmp_path / "closed" / "python") == f"only its owner can use {tmp_path}/closed"
    assert units._unreachable(Path("/usr/bin/env")) is None


def test_a_good_place_with_a_python_in_a_home(
    xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("opt")
    python = tmp_path / "home" / "python3"
    python.parent.mkdir()
    python.touch()
    (tmp_path / "opt/bin/python").symlink_to(python)
    for attribute, value in (("executable", "opt/bin/python"), ("prefix", "opt"), ("base_prefix", "home")):
        monkeypatch.setattr(sys, attribute, str(tmp_path / value))
    monkeypatch.setattr(
        units, "_unreachable", lambda path: "it is in a home" if "home" in path.parts else None
    )
    said = xenpvctl("install-units", status=1).stderr
    cure = f"Make its venv anew: /usr/bin/python3 -m venv --clear {tmp_path}/opt, and install it again."
    assert f"it is in a home. {cure}" in said
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "home"))  # no venv, and nothing to clear
    assert "--clear" not in xenpvctl("install-units", status=1).stderr


def test_for_an_image_of_another_system(
    xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with this one is no reason not to write it."""
    daemon = installed("opt")
    monkeypatch.setattr(units, "_unreachable", lambda path: "it is in a home")
    (tmp_path / "root").mkdir()
    done = xenpvctl("install-units", "--root", str(tmp_path / "root"))
    assert (tmp_path / "root/etc/systemd/system/xenpvd.target").exists()
    assert f"{tmp_path}/root must have {daemon}; on this host it could be no service: it is in" in done.stderr


def test_without_a_daemon(xenpvctl: Xenpvctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "xenpvctl")])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    said = xenpvctl("install-units", "--root", str(tmp_path), status=1).stderr
    assert f"cannot find xenpvd: it is not in {tmp_path}. Install the wheel" in said


@pytest.mark.usefixtures("anywhere")
def test_where_nothing_can_be_written(
    xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path]
) -> None:
    installed("opt")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "etc").write_text("a file")
    said = xenpvctl("install-units", "--root", str(tmp_path / "root"), status=1).stderr
    assert "cannot write" in said and "Use sudo, or --user" in said


def test_units_that_are_not_there(
    xenpvctl: Xenpvctl, tmp_path: Path, installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("opt")
    monkeypatch.setattr(units, "SOURCES", (tmp_path,))
    monkeypatch.setattr(units, "_unreachable", lambda path: None)
    assert "Install xenpvd again" in xenpvctl("install-units", "--user", status=1).stderr
