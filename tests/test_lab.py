"""What the lab fetches, keeps and builds, without the network."""

from __future__ import annotations

import lzma
import os
import tarfile
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import fio, guest, modules, packages, paths
from lab.cpio import Cpio
from lab.progress import LabError, step
from xenpvd.config import GuestConfig


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
def unpacked(tmp_path: Path) -> Path:
    folder = tmp_path / "package" / "usr" / "lib" / "modules" / "6.1"
    (folder / "kernel" / "net").mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/drivers/virtio.ko\n")
    for name, depends in {"ko-one": "ko_two,virtio", "ko_two": "ko_three", "ko_three": ""}.items():
        content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
        (folder / "kernel" / "net" / f"{name}.ko.xz").write_bytes(lzma.compress(content))
    (folder / "kernel" / "plain.ko").write_bytes(b"\0depends=\0")
    return folder


def test_modules_come_after_what_they_need(unpacked: Path) -> None:
    order = modules.load_order(unpacked, ["ko_one", "plain", "ko_three"])
    assert list(order) == ["ko_three", "ko_two", "ko_one", "plain"]
    assert order["ko_one"].startswith(b"\x7fELF")


def test_a_module_that_is_not_there_is_named(unpacked: Path) -> None:
    with pytest.raises(LabError, match="kernel module nope"):
        modules.load_order(unpacked, ["nope"])


def test_of_a_package_only_the_wanted_modules_stay(unpacked: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "boot").mkdir()
    (package / "boot" / "vmlinuz").touch()
    modules.take(package, ["ko_two"])
    left = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert left == {"boot/vmlinuz", "modules/ko_two.ko", "modules/ko_three.ko", "modules/order"}
    assert (package / "modules" / "order").read_text() == "ko_three\nko_two\n"


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
    shim = packages.SHIMS["4.17"]
    monkeypatch.setattr(packages.Suite, "refresh", lambda self: pytest.fail("took the network"))
    folder = paths.asset(shim.name)
    folder.mkdir(parents=True)
    (folder / "version").write_text(f"xen-utils-4.17 4.17.5\n{shim.stamp}\n")
    packages.fetch([shim])
    assert packages.installed_version(shim) == "xen-utils-4.17 4.17.5"


def test_an_asset_of_which_more_is_kept_by_now_is_fetched_again(cache: Path) -> None:
    kernel = packages.LAB_KERNELS["plain"]
    folder = paths.asset(kernel.name)
    folder.mkdir(parents=True)
    (folder / "version").write_text(f"linux-image-6.1 6.1.9-1\n{kernel.stamp}\n")
    assert packages.installed_version(kernel) == "linux-image-6.1 6.1.9-1"
    assert packages.installed_version(replace(kernel, modules=(*kernel.modules, "tap"))) is None


def test_an_asset_of_several_packages(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = packages.Asset("both", "sid", ("one", "two"), ("usr/*",))
    monkeypatch.setattr(packages.Suite, "refresh", lambda self: None)
    monkeypatch.setattr(packages.Suite, "resolve", lambda self, name: packages.Package(name, "1.0", 10))
    monkeypatch.setattr(packages.Suite, "unpack", lambda self, found, keep, into: (into / found.name).touch())
    packages.fetch([item])
    assert {path.name for path in paths.asset("both").iterdir()} == {"one", "two", "version"}
    assert packages.installed_version(item) == "one 1.0, two 1.0"
    assert packages.installed_version(replace(item, packages=("one", "two", "three"))) is None


def test_of_a_package_the_links_and_programs_stay_such(programs: Path, tmp_path: Path) -> None:
    folder, archive = tmp_path / "asset", tmp_path / "x.tar"
    folder.mkdir()
    with tarfile.open(archive, "w") as tar:
        for name, kind, link in (
            ("./usr/bin/tool", tarfile.REGTYPE, ""),
            ("./usr/bin/tool-ls", tarfile.LNKTYPE, "./usr/bin/tool"),
            ("./usr/lib/libx.so.1", tarfile.SYMTYPE, "libx.so.1.2"),
            ("./usr/share/other", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, link, 0o755
            tar.addfile(member)
    script(programs / "apt-get", "touch x.deb")
    script(programs / "dpkg-deb", f"cat {archive}")
    package = packages.Package("x", "1.0", 10)
    packages.Suite("bookworm").unpack(package, ("usr/bin/tool*", "usr/lib/libx.so.*"), folder)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    assert found == {"usr/bin/tool", "usr/bin/tool-ls", "usr/lib/libx.so.1"}
    assert os.access(folder / "usr/bin/tool", os.X_OK)
    assert (folder / "usr/bin/tool-ls").samefile(folder / "usr/bin/tool")
    assert (folder / "usr/lib/libx.so.1").readlink() == Path("libx.so.1.2")


def test_fio_is_built_from_its_source_once(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "fio-1.0"
    source.mkdir()
    script(source / "configure", 'echo "built with $1" > how')
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(source, "fio-fio-1.0")
    monkeypatch.setattr(packages, "install", lambda names: None)
    monkeypatch.setattr(packages, "archive_url", lambda: "http://mirror/debian")
    name = "fio_1.0.orig.tar.gz"
    source_only = (
        rf'case "$*" in *source\ fio) cp {tmp_path}/x.tar.gz {name}; touch {name}.asc fio_1.0.dsc;; esac'
    )
    script(programs / "apt-get", source_only)
    script(programs / "make", "mv how fio")
    script(programs / "strip", 'mv "$3" "$2"')
    with pytest.raises(LabError, match=r"python -m lab\.fio"):
        fio.program()
    fio.build()
    assert fio.program().read_text() == "built with --build-static\n" and fio.version() == "1.0"
    assert {path.name for path in paths.asset("fio").iterdir()} == {"fio", "version"}
    script(programs / "apt-get", "exit 1")
    fio.build()


def test_xens_tools_find_their_libraries_and_the_store(cache: Path) -> None:
    with pytest.raises(LabError, match="Run make setup"):
        packages.xen_tool("xenstore-ls")
    for place in ("usr/bin/xenstore-ls", "usr/lib/xen-4.17/bin/xenstored"):
        paths.asset("xen-tools", place).parent.mkdir(parents=True)
        paths.asset("xen-tools", place).touch()
        assert packages.xen_tool(Path(place).name) == paths.asset("xen-tools", place)
    environment = packages.xen_environment(Path("/s"))
    assert environment["XENSTORED_PATH"] == "/s"
    assert environment["LD_LIBRARY_PATH"].startswith(str(cache)) and environment["PATH"]


@pytest.mark.parametrize(
    "get",
    [lambda: guest.shim("4.20"), lambda: guest.kernel("6.12"), lambda: guest.grub("i386-xen")],
    ids=["shim", "kernel", "grub"],
)
def test_an_asset_that_is_not_there_says_how_to_get_it(get: Callable[[], Path]) -> None:
    with pytest.raises(LabError, match="Run make setup"):
        get()


# --- the demo guest ------------------------------------------------------------------------------------


@pytest.fixture
def assets(cache: Path) -> None:
    """Empty files where the demo guest's definition looks for kernels and shims."""
    for version, item in packages.GUEST_KERNELS.items():
        paths.asset(item.name, "boot").mkdir(parents=True)
        paths.asset(item.name, f"boot/vmlinuz-{version}").touch()
    for version, item in packages.SHIMS.items():
        paths.asset(item.name, f"usr/lib/xen-{version}/boot").mkdir(parents=True)
        paths.asset(item.name, f"usr/lib/xen-{version}/boot/xen-shim").touch()


@pytest.mark.parametrize(
    ("shape", "kernel", "shim"),
    [
        ({}, "6.1", "4.17"),
        ({"shim": "4.14", "vcpus": 8, "accel": "kvm"}, "6.1", "4.14"),
        ({"kernel": "6.12", "memory": 4608}, "6.12", "4.17"),
        ({"type": "pvh"}, "6.1", None),
    ],
)
def test_every_shape_of_the_demo_guest_is_a_definition(
    assets: None, shape: dict[str, Any], kernel: str, shim: str | None
) -> None:
    text = guest.toml(guest.definition(Path("/x.img"), **shape))
    found = tomllib.loads(text)
    assert GuestConfig.model_validate(found).vcpus == shape.get("vcpus", 1)
    assert found["kernel"].endswith(f"/boot/vmlinuz-{kernel}") and f"initrd-{kernel}" in found["ramdisk"]
    assert found.get("shim") == (shim and {"path": str(guest.shim(shim))})
    assert found["disk"] == [{"vdev": "xvda", "target": "/x.img"}]
    assert {key: found[key] for key in shape.keys() - {"kernel", "shim"}} == {
        key: value for key, value in shape.items() if key not in ("kernel", "shim")
    }


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
