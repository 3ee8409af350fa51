"""Each thing a host may lack is named with its cure."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from xenpvd.abi import linux_kvm as k
from xenpvd.ctl import doctor
from xenpvd.ctl.doctor import Finding
from xenpvd.errors import ImageError, Unsupported
from xenpvd.vmm.accel import XEN_CAPS_NEEDED


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An AMD host, whatever the tests run on: its /proc/cpuinfo."""
    (tmp_path / "module" / "kvm_amd").mkdir(parents=True)
    monkeypatch.setattr(doctor, "MODULES", tmp_path / "module")
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nflags\t\t: fpu svm sse\nvmx flags\t: none\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    )
    monkeypatch.setattr(doctor, "CPUINFO", path)
    return path


def kvm(monkeypatch: pytest.MonkeyPatch, version: int = 12, xen: int = 0x1FF) -> list[Finding]:
    answers = {k.KVM_GET_API_VERSION: version, k.KVM_CHECK_EXTENSION: xen}
    monkeypatch.setattr(doctor, "KVM", "/dev/null")
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, arg=0: answers[request])
    return doctor._kvm()


def test_kvm_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kvm(monkeypatch)
    assert [finding.verdict for finding in found] == ["ok", "ok", "ok", "ok"]
    assert found[1].text == "hardware virtualization: svm, kvm_amd"
    assert found[2].text.startswith("KVM_CAP_XEN_HVM 0x1ff (hypercall exits, ")
    assert found[3].text.startswith("accelerator: kvm-xen (")
    assert sum(doctor.XEN_BITS) == XEN_CAPS_NEEDED


@pytest.mark.parametrize(
    ("xen", "words"), [(0, "lacks hypercall exits, shared info, 2-level"), (0x1F, "lacks event send")]
)
def test_kvm_without_its_xen_support(monkeypatch: pytest.MonkeyPatch, xen: int, words: str) -> None:
    *_, bits, accel = kvm(monkeypatch, xen=xen)
    assert bits.verdict == "warn"
    assert words in bits.text
    assert "CONFIG_KVM_XEN" in bits.text
    assert str(accel).startswith("ok    accelerator: kvm (")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("fpu", "neither vmx nor svm"),
        ("fpu vmx", "sudo modprobe kvm_intel"),
    ],
)
def test_no_hardware_virtualization(
    monkeypatch: pytest.MonkeyPatch, cpu: Path, flags: str, words: str
) -> None:
    cpu.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    _, hardware, _, accel = kvm(monkeypatch, xen=0)
    assert hardware.verdict == "FAIL"
    assert words in hardware.text
    assert str(accel).startswith("FAIL  accelerator: none (")


def test_another_kvm_api(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = kvm(monkeypatch, version=11)
    assert found.verdict == "FAIL"
    assert "API version 11" in found.text


def test_no_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "KVM", str(tmp_path / "kvm"))
    assert "modprobe" in str(doctor._kvm()[0])

    def refuse(path: Any, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "usermod -aG kvm" in str(doctor._kvm()[0])


def test_something_else_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "KVM", "/dev/null")
    assert [finding.verdict for finding in doctor._kvm()] == ["FAIL"]


def test_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenpvd.vmm.boot.find_shim", lambda path: "/usr/lib/xen-4.17/boot/xen-shim")
    assert doctor._shim() == Finding("ok", "xen-shim /usr/lib/xen-4.17/boot/xen-shim")

    def none(path: str) -> str:
        raise ImageError("cannot find a xen-shim. Install it.", "auto")

    monkeypatch.setattr("xenpvd.vmm.boot.find_shim", none)
    assert doctor._shim() == Finding("FAIL", "cannot find a xen-shim. Install it.")


def test_without_libatomic_it_can_still_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise Unsupported("cannot load libatomic.so.1: it is not installed.", feature="libatomic")

    monkeypatch.setitem(sys.modules, "xenpvd.vmm.boot", Broken())
    assert str(doctor._shim()) == "FAIL  cannot load libatomic.so.1: it is not installed."
    assert doctor._grub().verdict == "note"


def test_grub(monkeypatch: pytest.MonkeyPatch) -> None:
    images: dict[str, str] = {}

    def find_grub(kind: str) -> str:
        if kind not in images:
            raise ImageError("cannot find GRUB", "pvgrub")
        return images[kind]

    monkeypatch.setattr("xenpvd.vmm.boot.find_grub", find_grub)
    assert doctor._grub().verdict == "note"
    assert "sudo apt install grub-xen-host" in doctor._grub().text
    images["pvh"] = "/grub.bin"
    assert str(doctor._grub()) == 'ok    GRUB for kernel = "pvgrub": /grub.bin (pvh)'


@pytest.mark.parametrize(
    ("setting", "verdict"),
    [("always [madvise] never", "ok"), ("always madvise [never]", "warn"), (None, "warn")],
)
def test_huge_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str | None, verdict: str
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(doctor, "THP", tmp_path / "enabled")
    assert doctor._huge_pages().verdict == verdict


def test_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._run_dir(Path("/run")).text == "/run writable"
    assert doctor._run_dir(Path("/run/a/b")).text == "/run/a/b can be made"
    assert doctor._run_dir(tmp_path / ("x" * 60)).verdict == "warn"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor._run_dir(tmp_path).verdict == "FAIL"


def test_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._python().verdict == "ok"
    assert doctor._uvloop().verdict == "ok"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert doctor._uvloop().verdict == "warn"

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert doctor._libatomic().verdict == "FAIL"


def test_everything_is_said_once(tmp_path: Path) -> None:
    found = doctor.examine(tmp_path)
    assert len(found) >= 7
    assert all(finding.verdict in ("ok", "note", "warn", "FAIL") for finding in found)


def test_an_engine_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor._engine().verdict == "ok"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor._engine().verdict == "note" and "apt install qemu-utils" in doctor._engine().text
