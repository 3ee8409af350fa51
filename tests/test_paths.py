from __future__ import annotations

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
        "disk": [{"target": "a"}],
        "console": {"log": "c.log", "xen_log": "/x.log"},
        "channel": [{"name": "agent", "log": "a.log"}, {"name": "b"}],
    }
    paths.anchor(definition, Path("/etc/xenpvd"))
    assert definition == {
        "kernel": "pvgrub",
        "ramdisk": "/etc/xenpvd/initrd",
        "shim": {"path": "auto"},
        "disk": [{"target": "/etc/xenpvd/a"}],
        "console": {"log": "/etc/xenpvd/c.log", "xen_log": "/x.log"},
        "channel": [{"name": "agent", "log": "/etc/xenpvd/a.log"}, {"name": "b"}],
    }
