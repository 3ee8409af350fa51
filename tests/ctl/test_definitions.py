"""Files by name and by path, and what is said where there is none."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.conftest import Xenpvctl
from xenpvd import paths
from xenpvd.ctl import definitions
from xenpvd.ctl.definitions import defined, find
from xenpvd.ctl.rundir import NoGuest, RunDir


def test_a_name_or_a_path(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path / "etc"])
    monkeypatch.chdir(tmp_path)
    place = RunDir(run_dir)
    for path in ("web1.toml", "./web1", "/srv/web1", "none.toml"):
        assert find(place, path) == tmp_path / path
    assert find(place, "web1") is None
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "web1.toml").touch()
    assert find(place, "web1") == tmp_path / "etc" / "web1.toml"
    with pytest.raises(NoGuest, match="no guest can be called"):
        find(place, "Web1")


def test_start_of_a_name_whose_file_lies_here(
    xenpvctl: Xenpvctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path / "own", tmp_path / "etc"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web1.toml").touch()
    for verb in ("start", "check"):
        assert xenpvctl(verb, "web1", status=3).stderr == (
            f"xenpvctl: no definition of web1: there is no {tmp_path}/own/web1.toml or "
            f"{tmp_path}/etc/web1.toml. For the file here: xenpvctl {verb} ./web1.toml\n"
        )


def test_a_file_on_storage_that_hangs_hides_no_other(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path])
    monkeypatch.setattr(definitions, "READ_TIME", 0.5)
    back, read = threading.Event(), definitions.read

    def hanging(file: Path) -> tuple[str, dict[str, Any]]:
        if file.name == "far.toml":
            back.wait(50)
        return read(file)

    monkeypatch.setattr(definitions, "read", hanging)
    for name in ("far", "near"):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}1"')
    try:
        assert defined(RunDir(run_dir)) == [("far", tmp_path / "far.toml"), ("near1", tmp_path / "near.toml")]
    finally:
        back.set()
