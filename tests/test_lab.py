"""The lab's own code, as far as it runs without a VM and without the network."""

from __future__ import annotations

import fcntl
import io
import json
import lzma
import os
import tarfile
from pathlib import Path

import pytest

from lab import __main__ as cli
from lab import guest, host, jobs, packages, paths
from lab.cpio import Cpio
from lab.modules import load_order
from lab.progress import LabError, step
from lab.wire import EXIT, RESULTS, STDERR, STDOUT, Job, frame, read_frame


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XENPVD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- cpio ----------------------------------------------------------------------------------------------


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive back: name -> (mode, content)."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = at + 110 + name_size + (-(110 + name_size) % 4)
        if name == "TRAILER!!!":
            assert start == len(archive)
            return found
        assert name not in found
        found[name] = (mode, archive[start : start + size])
        at = start + size + (-size % 4)


def test_cpio_holds_files_with_their_parents() -> None:
    cpio = Cpio()
    cpio.file("a/b/c", b"12345", 0o755)
    cpio.file("a/d", b"")
    cpio.symlink("bin/sh", "busybox")
    cpio.device("dev/console", 5, 1)
    cpio.folder("dev")
    found = entries(cpio.finish())
    assert list(found) == ["a", "a/b", "a/b/c", "a/d", "bin", "bin/sh", "dev", "dev/console"]
    assert found["a/b/c"] == (0o100755, b"12345")
    assert found["a/d"] == (0o100644, b"")
    assert found["bin/sh"] == (0o120777, b"busybox")
    assert found["dev"] == (0o040755, b"")
    assert found["dev/console"][0] == 0o020600


# --- kernel modules ------------------------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "6.1"
    (folder / "kernel" / "net").mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/drivers/virtio.ko\n")
    for name, depends in {"ko-one": "ko_two,virtio", "ko_two": "ko_three", "ko_three": ""}.items():
        content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
        (folder / "kernel" / "net" / f"{name}.ko.xz").write_bytes(lzma.compress(content))
    (folder / "kernel" / "plain.ko").write_bytes(b"\0depends=\0")
    return folder


def test_modules_come_after_what_they_need(modules: Path) -> None:
    order = load_order(modules, ["ko_one", "plain", "ko_three"])
    assert list(order) == ["ko_three", "ko_two", "ko_one", "plain"]
    assert order["ko_one"].startswith(b"\x7fELF")


def test_a_module_that_is_not_there_is_named(modules: Path) -> None:
    with pytest.raises(LabError, match="kernel module nope"):
        load_order(modules, ["nope"])


# --- the cache -----------------------------------------------------------------------------------------


def test_cache_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.cache() == cache
    monkeypatch.delenv("XENPVD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert paths.cache() == Path("/x/xenpvd")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/u")
    assert paths.cache() == Path("/home/u/.cache/xenpvd")


def test_replacing_takes_the_place_only_when_complete(tmp_path: Path) -> None:
    folder = tmp_path / "things" / "one"
    with pytest.raises(RuntimeError), paths.replacing(folder) as fresh:
        (fresh / "half").touch()
        raise RuntimeError
    assert list(folder.parent.iterdir()) == []
    with paths.replacing(folder) as fresh:
        (fresh / "a").touch()
    (folder.parent / ".one.killed").mkdir()
    with paths.replacing(folder) as fresh:
        (fresh / "b").touch()
        assert (folder / "a").exists()
    assert list(folder.parent.iterdir()) == [folder]
    assert list(folder.iterdir()) == [folder / "b"]


def test_step_says_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with step("get", "a thing"):
        pass
    with pytest.raises(ValueError), step("get", "another"):
        raise ValueError
    first, second = capsys.readouterr().err.splitlines()
    assert first == "get   a thing … ok (0.0 s)"
    assert second == "get   another … failed (0.0 s)"


# --- packages ------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_missing_packages(programs: Path) -> None:
    script(
        programs / "dpkg-query",
        'echo "one installed"; echo "two:amd64 installed"; echo "three config-files"; exit 1',
    )
    assert packages.missing(["one", "two", "three", "four"]) == ["three", "four"]


def test_archive_url_is_the_machines_own(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(programs / "apt-get", 'echo "Other http://o/"; echo "Debian http://mirror/debian/"; echo " "')
    assert packages.archive_url() == "http://mirror/debian"
    monkeypatch.setenv("XENPVD_MIRROR", "http://mine/debian/")
    assert packages.archive_url() == "http://mine/debian"


def test_archive_url_of_another_distribution(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "update_lists", lambda: None)
    script(programs / "apt-get", 'echo "Ubuntu http://u/"')
    with pytest.raises(LabError, match="XENPVD_MIRROR"):
        packages.archive_url()


def test_a_meta_package_resolves_to_its_image(programs: Path) -> None:
    script(
        programs / "apt-cache",
        'case "$*" in\n'
        '*depends*meta*) echo "meta"; echo "  Depends: linux-image-6.1.0-9-cloud-amd64";;\n'
        "*depends*) ;;\n"
        '*show*linux-image-6.1.0-9-cloud-amd64) echo "Version: 6.1.9-1"; echo "Size: 1234";;\n'
        "esac",
    )
    suite = packages.Suite("bookworm")
    assert suite.resolve("meta") == packages.Package("linux-image-6.1.0-9-cloud-amd64", "6.1.9-1", 1234)
    with pytest.raises(LabError, match="nothing in bookworm"):
        suite.resolve("nothing")


def test_a_failed_command_shows_its_last_lines(programs: Path) -> None:
    script(programs / "apt-cache", 'echo "E: no network" >&2; exit 100')
    with pytest.raises(LabError, match=r"status 100:\n    E: no network\nCheck the network"):
        packages.Suite("bookworm").resolve("x")


def test_fetch_leaves_what_is_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.Suite, "refresh", lambda self: pytest.fail("took the network"))
    folder = paths.asset(packages.SHIM_4_17.name)
    folder.mkdir(parents=True)
    (folder / "version").write_text("xen-utils-4.17 4.17.5\n")
    packages.fetch([packages.SHIM_4_17])
    assert packages.installed_version(packages.SHIM_4_17) == "xen-utils-4.17 4.17.5"


def test_an_asset_that_is_not_there_says_how_to_get_it() -> None:
    with pytest.raises(LabError, match="Run make setup"):
        guest.shim("4.20")


# --- disks ---------------------------------------------------------------------------------------------


def test_a_disk_image_gives_its_files_back(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    guest.make_disk(image, 8 << 20, {"hello.txt": b"hello\n", "in/side": b"\0\xff" * 3000})
    assert image.stat().st_size == 8 << 20
    assert guest.read_file(image, "/hello.txt") == b"hello\n"
    assert guest.read_file(image, "/in/side") == b"\0\xff" * 3000
    with pytest.raises(FileNotFoundError):
        guest.read_file(image, "/nope")
    image.write_bytes(bytes(4096))
    with pytest.raises(LabError, match="Is it an ext4 image"):
        guest.read_file(image, "/hello.txt")


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
    (host.folder() / "console.log").write_text("Kernel panic\n")
    with pytest.raises(LabError, match=r"went away[^$]*Kernel panic"):
        jobs._receive(io.BytesIO(frame(STDOUT, b"x")), {STDOUT: io.BytesIO()}, None)


# --- the lab host --------------------------------------------------------------------------------------


def test_no_host_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 1
    assert cli.main(["down"]) == 0
    assert capsys.readouterr().out == "no lab host is up\nno lab host was up\n"


def test_a_held_lock_means_a_running_host() -> None:
    state = host.folder()
    assert state.stat().st_mode & 0o777 == 0o700
    (state / "host.json").write_text(json.dumps({"pid": 5, "port": 6, "token": "t", "code": "c"}))
    assert host.running() is None
    with (state / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert host.running() == host.Host(5, 6, "t", "c")
        (state / "host.json").write_text("")
        with pytest.raises(LabError, match="fuser"):
            host.running()
    assert host.running() is None


def test_purge_deletes_only_its_own(cache: Path) -> None:
    (cache / "assets" / "x").mkdir(parents=True)
    (cache / "mine").mkdir()
    assert cli.main(["purge"]) == 0
    assert list(cache.iterdir()) == [cache / "mine"]
