from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from xenpvd import paths


@pytest.mark.parametrize(
    ("uid", "environment", "expected"),
    [
        (0, {"XDG_RUNTIME_DIR": "/x"}, "/run/xenpvd"),
        (1000, {"XDG_RUNTIME_DIR": "/x"}, "/x/xenpvd"),
        (1000, {}, "/run/user/1000/xenpvd"),
    ],
)
def test_run_dir(
    monkeypatch: pytest.MonkeyPatch, uid: int, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert paths.run_dir() == Path(expected)


def test_what_names_no_file_is_not_anchored() -> None:
    definition = {
        "kernel": "pvgrub",
        "ramdisk": "initrd",
        "shim": {"path": "auto"},
        "disk": [
            {"target": "a"},
            {"target": "fd:root"},
            {"target": "./fd:root"},
            {"target": "nbd://host/a"},
            {"target": "nbd+unix:///?socket=/s"},
            {"target": "nbds://host/a"},  # no path either, but what it is the model does not know
        ],
        "console": {"log": "c.log", "xen_log": "/x.log"},
        "channel": [{"name": "agent", "log": "a.log"}, {"name": "b"}],
    }
    paths.anchor(definition, Path("/etc/xenpvd"))
    assert definition == {
        "kernel": "pvgrub",
        "ramdisk": "/etc/xenpvd/initrd",
        "shim": {"path": "auto"},
        "disk": [
            {"target": "/etc/xenpvd/a"},
            {"target": "fd:root"},
            {"target": "/etc/xenpvd/fd:root"},
            {"target": "nbd://host/a"},
            {"target": "nbd+unix:///?socket=/s"},
            {"target": "nbds://host/a"},  # no path either, but what it is the model does not know
        ],
        "console": {"log": "/etc/xenpvd/c.log", "xen_log": "/x.log"},
        "channel": [{"name": "agent", "log": "/etc/xenpvd/a.log"}, {"name": "b"}],
    }


def test_definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, system = tmp_path / "config" / "xenpvd", tmp_path / "etc"
    for folder, names in ((own, ("web1", "No")), (system, ("web1", "web2", "gateway"))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.toml").touch()
    monkeypatch.setattr(paths, "CONFIG_DIR", system)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert paths.config_dirs() == [own, system]
    assert paths.definition("web1") == own / "web1.toml"
    assert paths.definition("web2") == system / "web2.toml"
    assert paths.definition("web3") is None
    assert paths.definitions() == {"web1", "web2"}
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert paths.definition("web1") == system / "web1.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert paths.user_config() == Path("/home/ann/.config")


def test_what_a_daemon_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/ann/state")
    assert paths.state_dir("web1") == Path("/home/ann/state/xenpvd/web1")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/home/ann")
    assert paths.state_dir("web1") == Path("/home/ann/.local/state/xenpvd/web1")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.state_dir("web1") == Path("/var/lib/xenpvd/web1")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/xenpvd/a:/var/lib/b")
    assert paths.state_dir("web1") == Path("/var/lib/xenpvd/a")


def test_open_regular(tmp_path: Path) -> None:
    file, link, pipe, place = (tmp_path / name for name in ("file", "link", "pipe", "socket"))
    os.close(paths.open_regular(file, os.O_WRONLY | os.O_CREAT, 0o640))
    link.symlink_to(file)
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place))
    before = set(Path("/proc/self/fd").iterdir())
    for path in (link, pipe, place, tmp_path):
        with pytest.raises(OSError, match="it is no regular file"):
            paths.open_regular(path, os.O_RDONLY, 0)
    with pytest.raises(FileNotFoundError):
        paths.open_regular(tmp_path / "none", os.O_RDONLY, 0)
    assert set(Path("/proc/self/fd").iterdir()) == before
