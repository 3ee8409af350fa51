"""Names, places, and the words for a guest that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon
from xenpvd.ctl.rundir import NoGuest, RunDir


def test_names_lists_sockets_only(run_dir: Path, daemon: Daemon, dead: str) -> None:
    (run_dir / "never").mkdir()
    assert RunDir(run_dir).names() == ["gone", "web1"]


def test_connect(run_dir: Path, daemon: Daemon, dead: str) -> None:
    place = RunDir(run_dir)
    with place.connect("web1") as client:
        assert client.hello["guest"] == "web1"
    with pytest.raises(NoGuest, match=r"no guest called web2: .*/web2/rpc.sock is missing. Start it with"):
        place.connect("web2")
    with pytest.raises(NoGuest, match=r"gone is dead: nobody answers at .* Start it again"):
        place.connect(dead)
    for name in ("../web1", "", "Web1", "a/b"):
        with pytest.raises(NoGuest, match="no guest can be called"):
            place.connect(name)


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(NoGuest, match="too long"):
        RunDir(tmp_path / ("x" * 100)).connect("web1")
