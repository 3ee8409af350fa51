"""What keeps a guest from starting, and what it boots from, for each shape of guest."""

from __future__ import annotations

import fcntl
import gzip
import re
from pathlib import Path

import pytest

from tests.fakes.images import PV_ENTRY, Elf, bzimage
from xenpvd import check
from xenpvd.backends.blkif import engine_process
from xenpvd.config import GuestConfig
from xenpvd.errors import BadConfig, ImageError, Unsupported
from xenpvd.vmm import boot

PV_KERNEL = bzimage(gzip.compress(Elf(bits=64, notes=PV_ENTRY).bytes()))
PVH_KERNEL = bzimage(gzip.compress(Elf(bits=64).bytes()))


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """KVM is fine; the accelerators that were asked for."""
    asked: list[str] = []
    monkeypatch.setattr(check, "probe", lambda accel, image=None: asked.append(accel))
    return asked


@pytest.fixture
def pv(definition: GuestConfig, tmp_path: Path) -> GuestConfig:
    (tmp_path / "kernel").write_bytes(PV_KERNEL)
    return definition


@pytest.fixture
def pvh(definition: GuestConfig, tmp_path: Path) -> GuestConfig:
    """There is no shim on this host."""
    (tmp_path / "kernel").write_bytes(PVH_KERNEL)
    return changed(definition, type="pvh", shim={"path": "/nowhere/xen-shim"})


@pytest.fixture
def grub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    """Where GRUB would be installed, by the guest's type."""
    paths = {name: tmp_path / f"grub-{name}.bin" for name in ("pv", "pvh")}
    monkeypatch.setattr(boot, "GRUB_PATHS", {name: str(path) for name, path in paths.items()})
    return paths


def changed(definition: GuestConfig, **changes: object) -> GuestConfig:
    return GuestConfig.model_validate(definition.model_dump() | changes)


def found(definition: GuestConfig, **changes: object) -> dict[str, str]:
    return dict(check.problems(changed(definition, **changes)))


@pytest.mark.parametrize("shape", ["pv", "pvh"])
def test_a_good_definition_has_no_problems_and_nothing_stays_locked(
    shape: str, request: pytest.FixtureRequest
) -> None:
    definition = request.getfixturevalue(shape)
    assert found(definition) == {}
    assert found(definition) == {}


def test_every_problem_at_once_with_its_toml_path(pv: GuestConfig, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    problems = found(
        pv,
        kernel=str(tmp_path),
        ramdisk=nowhere,
        memory=1 << 20,
        shim={"path": str(tmp_path / "kernel")},
        disk=[{"vdev": "xvda", "target": nowhere}, {"vdev": "xvdb", "target": str(tmp_path)}],
    )
    assert list(problems) == ["shim.path", "kernel", "ramdisk", "memory", "disk.0.target", "disk.1.target"]
    assert "no PVH entry. Give a xen-shim" in problems["shim.path"] and "this host has" in problems["memory"]
    assert nowhere in problems["ramdisk"] and nowhere in problems["disk.0.target"]


def test_an_image_that_does_not_fit_its_sectors(pv: GuestConfig, tmp_path: Path) -> None:
    image = tmp_path / "odd.img"
    image.write_bytes(bytes(512 * 9))
    disk = {"vdev": "xvda", "target": str(image), "sector_size": 4096}
    problems = found(pv, disk=[disk])
    assert list(problems) == ["disk.0.sector_size"] and "no multiple of" in problems["disk.0.sector_size"]
    assert found(pv, disk=[disk | {"sector_size": 512, "cache": "none"}]) == {}


@pytest.mark.parametrize(("one", "other"), [("rw", "rw"), ("rw", "ro"), ("ro", "ro")])
def test_two_disks_of_one_image(pv: GuestConfig, tmp_path: Path, one: str, other: str) -> None:
    image, link = tmp_path / "image", tmp_path / "link"
    image.write_bytes(bytes(4096))
    link.symlink_to(image)
    disks = [
        {"vdev": "xvda", "target": f"{image}", "access": one},
        {"vdev": "xvdb", "target": f"{link}", "access": other},
    ]
    problems = found(pv, disk=disks)
    if one == other == "ro":
        assert problems == {}
    else:
        assert list(problems) == ["disk.1.target"]
        assert f"cannot use image {link}: xvda uses it. Remove one of them, or" in problems["disk.1.target"]


def test_two_disks_of_one_descriptor(pv: GuestConfig) -> None:
    disks = [{"vdev": vdev, "target": "fd:data"} for vdev in ("xvda", "xvdb")]
    assert "xvda uses it" in found(pv, disk=disks)["disk.1.target"]


def test_it_locks_nothing(pv: GuestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts just now would be refused."""
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    asked = []

    def look(kept: int, what: int, argument: object = 0) -> object:
        asked.append(what)
        return real(kept, what, argument)  # type: ignore[call-overload]

    real = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", look)
    assert found(pv, disk=[{"vdev": "xvda", "target": f"{image}"}]) == {}
    assert fcntl.F_OFD_GETLK in asked and fcntl.F_OFD_SETLK not in asked


def test_two_names_of_one_number(pv: GuestConfig, tmp_path: Path) -> None:
    names = ("xvda", "d0p1", "51712", "xvda1", "sdzz")
    disks = [{"vdev": vdev, "device": "cdrom"} for vdev in names]
    assert found(pv, disk=disks) == {
        "disk.2.vdev": "cannot use 51712: its number 51712 is xvda's. Choose another.",
        "disk.3.vdev": "cannot use xvda1: its number 51713 is d0p1's. Choose another.",
        "disk.4.vdev": "cannot use sdzz as a disk's name: there are sda to sdp, with partitions to 15. "
        "Use xvda, xvdb and so on.",
    }


@pytest.mark.parametrize(
    "content, why",
    [
        (b"kernel", "it is no kernel: neither a bzImage nor an ELF image"),
        (PVH_KERNEL, 'it has no entry for Xen PV. .* use type = "pvh"'),
        (PV_KERNEL[:-200], "a bzImage cut short"),
    ],
)
def test_a_pv_kernel_that_the_shim_could_not_run(
    pv: GuestConfig, tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "kernel").write_bytes(content)
    problems = found(pv)
    assert list(problems) == ["kernel"] and re.search(why, problems["kernel"])
    check.load_image(pv)  # the shim would find out


@pytest.mark.parametrize(
    "content, why",
    [
        (b"kernel", "it is not an x86 ELF file"),
        (PV_KERNEL, 'it has no PVH entry. Give one .*, or use type = "pv"'),
        (PVH_KERNEL[:-200], "it is a bzImage cut short"),
    ],
)
def test_a_kernel_that_cannot_be_entered(pvh: GuestConfig, tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "kernel").write_bytes(content)
    with pytest.raises(ImageError, match=f"cannot use the kernel {tmp_path}/kernel: {why}"):
        check.load_image(pvh)
    assert list(found(pvh)) == ["kernel"]


def test_the_host_is_looked_at_too(
    pv: GuestConfig, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(pv, accel="kvm") == {} and probed == ["kvm", "kvm"]

    def refuse(accel: str, image: object = None) -> None:
        if image is not None or accel == "kvm-xen":
            raise Unsupported("no Xen support here", feature="KVM_CAP_XEN_HVM")

    monkeypatch.setattr(check, "probe", refuse)
    assert found(pv, accel="kvm-xen") == {"(host)": "no Xen support here"}
    assert found(pv) == {"accel": "no Xen support here"}, "this kernel on this host"


@pytest.mark.parametrize("shape", ["pv", "pvh"])
def test_memory_that_leaves_no_room(shape: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "big").write_bytes(bytes(40 << 20))
    definition = changed(request.getfixturevalue(shape), ramdisk=str(tmp_path / "big"), memory=128)
    assert "Set memory = " in found(definition)["memory"]
    with pytest.raises(BadConfig):
        check.load_image(definition)


def test_who_is_not_on_this_host(pv: GuestConfig) -> None:
    definition = changed(pv, access={"viewer": ["user:root", "user:no-such"], "admin": ["group:no-such"]})
    assert dict(check.problems(definition)) == {
        "access.viewer.1": "there is no user no-such on this host",
        "access.admin.0": "there is no group no-such on this host",
    }


# -- what is booted


def test_a_pv_guest_is_the_shim_with_the_kernel_as_its_module(pv: GuestConfig, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"initrd")
    image = check.load_image(changed(pv, shim={**pv.shim.model_dump(), "extra": "noreboot"}))
    assert image.shim and image.cmdline == "pv-shim console=xen noreboot"
    assert image.kernel.entry == 0x200000
    assert image.modules == ((PV_KERNEL, "console=hvc0"),)
    image = check.load_image(changed(pv, ramdisk=str(tmp_path / "initrd")))
    assert image.cmdline == "pv-shim console=xen"
    assert image.modules == ((PV_KERNEL, "console=hvc0"), (b"initrd", ""))
    with pytest.raises(ImageError):
        check.load_image(changed(pv, kernel="/nowhere/at/all"))


def test_a_pvh_guest_is_its_kernel(pvh: GuestConfig, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"initrd")
    image = check.load_image(pvh)
    assert not image.shim and (image.cmdline, image.modules) == ("console=hvc0", ())
    assert image.kernel.segments[0].data == b"0123456789abcdef"
    image = check.load_image(changed(pvh, ramdisk=str(tmp_path / "initrd")))
    assert image.modules == ((b"initrd", ""),)


def test_pvgrub_is_the_hosts_grub_for_the_type(
    pv: GuestConfig, pvh: GuestConfig, grub: dict[str, Path]
) -> None:
    for definition in (changed(pv, kernel="pvgrub"), changed(pvh, kernel="pvgrub")):
        assert "apt install grub-xen-host" in found(definition)["kernel"]
        with pytest.raises(ImageError, match="apt install grub-xen-host"):
            check.load_image(definition)
    grub["pv"].write_bytes(Elf(notes=PV_ENTRY).bytes())
    grub["pvh"].write_bytes(Elf().bytes())
    image = check.load_image(changed(pv, kernel="pvgrub"))
    assert image.shim and image.modules == ((Elf(notes=PV_ENTRY).bytes(), "console=hvc0"),)
    image = check.load_image(changed(pvh, kernel="pvgrub"))
    assert not image.shim and image.modules == ()
    assert found(pv, kernel="pvgrub") == found(pvh, kernel="pvgrub") == {}


def test_pvgrub_takes_no_ramdisk(pv: GuestConfig, grub: dict[str, Path]) -> None:
    grub["pv"].write_bytes(PV_KERNEL)
    definition = changed(pv, kernel="pvgrub", ramdisk="/boot/initrd.img")
    assert "Remove ramdisk" in found(definition)["ramdisk"]
    with pytest.raises(BadConfig, match="Remove ramdisk"):
        check.load_image(definition)


def test_images_of_other_formats(pv: GuestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "find", lambda: "/usr/bin/qemu-storage-daemon")
    image = tmp_path / "disk.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes([0, 0, 0, 3]) + bytes(96))
    disk = {"vdev": "xvda", "target": f"{image}", "format": "qcow2"}
    assert found(pv, disk=[disk]) == {}
    assert "it is no vdi image" in found(pv, disk=[disk | {"format": "vdi"}])["disk.0.target"]
    assert found(pv, disk=[{"vdev": "xvda", "target": "nbd://host/a"}]) == {}
    assert "names no host" in found(pv, disk=[{"vdev": "xvda", "target": "nbd:///a"}])["disk.0.target"]
    assert "port 0" in found(pv, disk=[{"vdev": "xvda", "target": "nbd://h:0/a"}])["disk.0.target"]
    assert "#2 is no part" in found(pv, disk=[{"vdev": "xvda", "target": "nbd://h/disk#2"}])["disk.0.target"]
    monkeypatch.undo()
    monkeypatch.setattr(engine_process, "_PATH", "/nowhere")
    assert "qemu-storage-daemon. Install it" in found(pv, disk=[disk])["disk.0.target"]
