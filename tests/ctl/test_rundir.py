"""Names, places, and the words for a guest that is not there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon
from xenpvd import paths
from xenpvd.ctl.rundir import NoGuest, RunDir, gone


def test_names_lists_sockets_only(run_dir: Path, daemon: Daemon, dead: str) -> None:
    (run_dir / "never").mkdir()
    assert RunDir(run_dir).names() == ["gone", "web1"]


def test_connect(run_dir: Path, daemon: Daemon, dead: str) -> None:
    place = RunDir(run_dir)
    with place.connect("web1") as client:
        assert client.hello["guest"] == "web1"
    with pytest.raises(NoGuest, match=r"no guest called web2: .*/web2/rpc.sock is missing. "):
        place.connect("web2")
    with pytest.raises(NoGuest, match=r"gone is dead: nobody answers at "):
        place.connect(dead)
    for name in ("../web1", "", "Web1", "a/b"):
        with pytest.raises(NoGuest, match="no guest can be called"):
            place.connect(name)


@pytest.mark.parametrize("name", ["web2", "gone"])
def test_how_it_is_started(
    run_dir: Path, tmp_path: Path, dead: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As it can be: by a name only where there is a definition of that name."""
    place = RunDir(run_dir)
    here, folder = tmp_path / "here", tmp_path / "definitions"
    here.mkdir()
    folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(paths, "config_dirs", lambda: [folder])

    def cure() -> str:
        with pytest.raises(NoGuest) as fault:
            place.connect(name)
        assert fault.value.name == name
        said.append(str(fault.value).partition(":")[0])
        return str(fault.value).rpartition(": ")[2]

    said: list[str] = []
    assert cure() == "xenpvctl start FILE.toml"
    (here / f"{name}.toml").touch()
    assert cure() == f"xenpvctl start ./{name}.toml"
    (folder / f"{name}.toml").touch()
    assert cure() == f"xenpvctl start {name}"
    if name == "web2":
        assert said == ["no guest called web2", "no guest called web2", "web2 is off"]


def test_the_file_that_it_was_started_from(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path])
    place = RunDir(run_dir)
    place.remember("web1", tmp_path / "a.toml")  # it has no folder
    assert place.definition("web1") is None and place.definitions() == []
    (run_dir / "web1").mkdir()
    for file in (Path("/srv/b.toml"), Path("/srv/a.toml")):
        place.remember("web1", file)
        assert place.definition("web1") == file
    place.link("Web2").parent.mkdir()
    place.remember("Web2", tmp_path)  # nobody can be started by that name
    assert place.definitions() == ["web1"]
    owner = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    assert place.definition("web1") is None, "what somebody else left there is not run"
    (tmp_path / "web1.toml").touch()
    assert place.definition("web1") == tmp_path / "web1.toml"


def test_tidy(run_dir: Path) -> None:
    place = RunDir(run_dir)
    place.tidy("web1", [])  # there is nothing
    folder = run_dir / "web1"
    for made in (["rpc.sock"], ["lock", "rpc.sock"], []):
        folder.mkdir()
        for name in made:
            (folder / name).touch()
        place.tidy("web1", [place.socket("web1")])
        assert not folder.exists()
    folder.mkdir()
    place.remember("web1", Path("/a.toml"))
    place.lock("web1").touch()
    place.tidy("web1")
    assert {path.name for path in folder.iterdir()} == {"lock", "definition"}
    with place.lock("web1").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        place.tidy("web1", [place.link("web1")])
    assert {path.name for path in folder.iterdir()} == {"lock", "definition"}, "somebody lives there"


def test_a_lock_that_is_a_pipe(run_dir: Path) -> None:
    """Somebody else's folder: it keeps nobody."""
    place = RunDir(run_dir)
    place.lock("web1").parent.mkdir()
    os.mkfifo(place.lock("web1"))
    place.tidy("web1", [place.lock("web1")])
    assert place.lock("web1").exists()


def test_a_folder_of_somebody_else_remembers_nothing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not though the link in it is ours; and it is the link's own file that counts, not what is put in its
    place between two looks."""
    place, good, evil = RunDir(run_dir), tmp_path / "good", tmp_path / "evil"
    (run_dir / "web1").mkdir()
    place.remember("web1", good)
    fstat = os.fstat

    def swapped(fd: int) -> os.stat_result:
        place.remember("web1", evil)
        return fstat(fd)

    monkeypatch.setattr("xenpvd.ctl.rundir.os.fstat", swapped)
    assert place.remembered("web1") == good
    folder = (run_dir / "web1").stat().st_ino

    def theirs(fd: int) -> os.stat_result:
        found = list(fstat(fd))
        found[4] += found[1] == folder
        return os.stat_result(found)

    monkeypatch.setattr("xenpvd.ctl.rundir.os.fstat", theirs)
    assert place.remembered("web1") is None
    monkeypatch.setattr("xenpvd.ctl.rundir.os.fstat", fstat)
    assert place.remembered("web1") == evil


def test_how_one_is_started_whose_file_is_gone(run_dir: Path, tmp_path: Path, dead: str) -> None:
    place = RunDir(run_dir)
    place.remember(dead, tmp_path / "a.toml")
    with pytest.raises(NoGuest, match=f"was last started from {tmp_path}/a.toml, which is gone. Give its"):
        place.connect(dead)


def test_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.toml"
    assert gone(file)
    file.touch()
    assert not gone(file) and gone(file / "b.toml")
    monkeypatch.setattr(Path, "lstat", lambda path: (_ for _ in ()).throw(PermissionError()))
    assert not gone(file), "it is just not for this user to see"


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(NoGuest, match="too long"):
        RunDir(tmp_path / ("x" * 100)).connect("web1")
