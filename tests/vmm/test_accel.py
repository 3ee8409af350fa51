"""Which accelerator a host gets, and what it is told where it can have none."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tests.fakes.kvm import CAPS, PLAIN_CAPS, FakeSystem
from xenpvd.abi import linux_kvm as k
from xenpvd.errors import Unsupported
from xenpvd.vmm.accel import choose, probe
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.hypercall_insn import XEN_ELFNOTE_GUEST_OS
from xenpvd.vmm.kernel import PvhImage

XEN = k.KVM_CAP_XEN_HVM


@pytest.mark.parametrize(
    "caps, accel, name, why",
    [
        (0x1FF, "auto", "kvm-xen", "KVM_CAP_XEN_HVM 0x1ff: events stay in the kernel"),
        (0x36, "auto", "kvm-xen", "KVM_CAP_XEN_HVM 0x36"),
        (0x1FF, "kvm-xen", "kvm-xen", "asked for; KVM_CAP_XEN_HVM 0x1ff"),
        (0x1FF, "kvm", "kvm", "asked for"),
        (0, "auto", "kvm", "Xen capabilities 0x0 and 0x36 are needed for kvm-xen (Linux 5.19"),
        (0x36 & ~(1 << 5), "auto", "kvm", "Xen capabilities 0x16 and 0x36"),
        (0, "kvm", "kvm", "asked for"),
    ],
)
def test_the_choice(caps: int, accel: str, name: str, why: str) -> None:
    system = FakeSystem({**CAPS, XEN: caps})
    found = choose(system, accel)  # type: ignore[arg-type]
    assert found[0] == name and why in found[1] and found[2] == caps


@pytest.mark.parametrize("missing", [1 << 1, 1 << 2, 1 << 4, 1 << 5])
def test_kvm_xen_asked_for_where_it_is_not(missing: int) -> None:
    """P7."""
    system = FakeSystem({**CAPS, XEN: 0x1FF & ~missing})
    with pytest.raises(Unsupported, match=f"{0x1FF & ~missing:#x} and 0x36 are needed. Use Linux") as caught:
        choose(system, "kvm-xen")  # type: ignore[arg-type]
    assert caught.value.data["caps"] == 0x1FF & ~missing


@pytest.mark.parametrize("accel", ["auto", "kvm-xen", "kvm"])
@pytest.mark.parametrize(
    "cap, value, text",
    [
        (k.KVM_CAP_IMMEDIATE_EXIT, 0, "no immediate exit"),
        (k.KVM_CAP_SPLIT_IRQCHIP, 0, "no split irqchip"),
        (k.KVM_CAP_SIGNAL_MSI, 0, "no KVM_SIGNAL_MSI"),
        (k.KVM_CAP_SYNC_REGS, 0, "no KVM_CAP_SYNC_REGS"),
        (k.KVM_CAP_SYNC_REGS, 1, "no KVM_CAP_SYNC_REGS"),
    ],
)
def test_kvms_that_are_too_old(accel: str, cap: int, value: int, text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        choose(FakeSystem({**CAPS, cap: value}), accel)  # type: ignore[arg-type]


def test_a_kvm_without_xen_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenpvd.vmm.accel.System", lambda: FakeSystem(PLAIN_CAPS))
    assert probe() == "kvm"


@pytest.mark.parametrize(("caps", "fits"), [(CAPS, True), (PLAIN_CAPS, False)])
def test_a_kernel_that_can_not_reach_us_is_told_before_it_starts(caps: dict[int, int], fits: bool) -> None:
    linux = BootImage(PvhImage(0, (), {XEN_ELFNOTE_GUEST_OS: b"linux\0"}), "", (), shim=False)
    with nullcontext() if fits else pytest.raises(Unsupported, match="cannot start this kernel by itself"):
        choose(FakeSystem(caps), "auto", linux)  # type: ignore[arg-type]
