"""Each thing a host may lack is named with its cure."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from xenpvd.abi import linux_kvm as k
from xenpvd.ctl import doctor
from xenpvd.ctl.doctor import Finding
from xenpvd.errors import ImageError
from xenpvd.vmm.machine import XEN_CAPS_NEEDED


def kvm(monkeypatch: pytest.MonkeyPatch, version: int = 12, xen: int = 0x1FF) -> list[Finding]:
    answers = {k.KVM_GET_API_VERSION: version, k.KVM_CHECK_EXTENSION: xen}
    monkeypatch.setattr(doctor, "KVM", "/dev/null")
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, arg=0: answers[request])
    return doctor._kvm()


def test_kvm_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kvm(monkeypatch)
    assert [finding.verdict for finding in found] == ["ok", "ok"]
    assert found[1].text.startswith("KVM_CAP_XEN_HVM 0x1ff (hypercall exits, ")
    assert sum(doctor.XEN_BITS) == XEN_CAPS_NEEDED


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({"version": 11}, "FAIL", "API version 11"),
        ({"xen": 0}, "FAIL", "CONFIG_KVM_XEN"),
        ({"xen": 0x1F}, "FAIL", "lacks event send"),
    ],
)
def test_kvm_lacks_something(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, int], verdict: str, words: str
) -> None:
    last = kvm(monkeypatch, **change)[-1]
    assert last.verdict == verdict
    assert words in last.text


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
    assert all(finding.verdict in ("ok", "warn", "FAIL") for finding in found)
