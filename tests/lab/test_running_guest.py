"""What can be seen of a running guest, and asked of it: one guest of two vCPUs, shared by these tests."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import guest as assets
from tests.lab.conftest import Daemon
from xenpvd.ctl.client import RpcFault

MEMORY = 320


@pytest.fixture(scope="module")
def web() -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="xenpvd-test-", dir="/dev/shm"))
    shutil.copyfile(assets.disk(), folder / "xvda.img")
    definition = {**assets.definition(folder / "xvda.img"), "vcpus": 2, "memory": MEMORY}
    daemon = Daemon(folder, definition)
    try:
        yield daemon.start().at_the_shell()
    finally:
        daemon.end()
        shutil.rmtree(folder, ignore_errors=True)


def test_event_channels_as_qemu_names_them(web: Daemon) -> None:
    ports = {port["port"]: port for port in web.call("evtchn.list")}
    assert set(ports[1]) == {"port", "vcpu", "type", "remote-domain", "target", "pending", "masked"}
    kinds = [port["type"] for port in ports.values()]
    assert kinds.count("ipi") >= 4 and kinds.count("interdomain") >= 3  # console, store, xvda
    assert {port["vcpu"] for port in ports.values() if port["type"] == "ipi"} == {0, 1}
    assert {port["remote-domain"] for port in ports.values() if port["type"] == "interdomain"} == {"0"}
    assert not ports[1]["masked"]
    assert web.call("evtchn.inject", port=1)["port"] == 1
    assert web.sh("echo still here") == "still here"
    with pytest.raises(RpcFault, match="4000"):
        web.call("evtchn.inject", port=4000)


def test_grants_are_those_of_the_disk(web: Daemon) -> None:
    grants = web.call("grant.list")
    ref = int(web.call("xenstore.read", path="/local/domain/1/device/vbd/51712/queue-0/ring-ref")["text"])
    (ring,) = [grant for grant in grants if grant["gref"] == ref]
    assert ring["domid"] == 0 and ring["maps"] == 1 and ring["reading"] and ring["writing"]


def test_hypercalls_are_counted_and_decoded(web: Daemon) -> None:
    stats = web.call("hypercall.stats", recent=16)
    counts = {row["name"]: row for row in stats["counts"]}
    assert sum(row["count"] for row in stats["counts"]) == stats["total"]
    assert sum(counts["register_vcpu_info"]["results"].values()) == 2  # one a vCPU
    assert all(sum(row["results"].values()) == row["count"] for row in stats["counts"])
    assert len(stats["recent"]) == 16 and stats["recent"][-1]["seq"] == stats["total"]


def test_vcpus_and_their_registers(web: Daemon) -> None:
    first, second = web.call("vcpu.list", regs=True)
    assert first["online"] and second["online"] and first["state"] == "running"
    assert first["regs"]["cr0"] & 1 << 31 and first["regs"]["efer"] & 1 << 10  # paging, long mode
    assert first["regs"]["rip"] >> 47 == 0x1FFFF  # the shim's, in the upper half
    assert "regs" not in web.call("vcpu.list")[0] or web.call("vcpu.list")[0]["regs"] is None


def test_memory_and_its_balloon(web: Daemon) -> None:
    info = web.call("memory.info")
    current = "/sys/devices/system/xen_memory/xen_memory0/info/current_kb"
    whole = int(web.sh(f"cat {current}"))
    assert info["guest"] == whole * 1024 and info["ballooned"] == 0 and info["ram"] == MEMORY << 20

    def resident() -> int:
        return int(web.call("memory.info")["resident"])

    web.sh("dd if=/dev/zero of=/dev/shm/fill bs=1M count=150 2>/dev/null; rm /dev/shm/fill")  # touched
    before = resident()
    done = web.call("memory.set_target", mib=MEMORY - 100, timeout=90)
    assert done["reached_mib"] == MEMORY - 100 and done["confirmed"] is not None
    assert web.call("memory.info")["ballooned"] == 100 << 20
    assert int(web.sh(f"cat {current}")) == whole - 100 * 1024
    assert resident() <= before - (90 << 20)  # the host really has them
    assert web.call("memory.set_target", mib=MEMORY, timeout=90)["reached_mib"] == MEMORY
    assert int(web.sh(f"cat {current}")) == whole
    web.sh(
        "dd if=/dev/zero of=/dev/shm/fill bs=1M count=150 2>/dev/null; rm /dev/shm/fill"
    )  # and can be used
    with pytest.raises(RpcFault, match=f"{MEMORY}"):
        web.call("memory.set_target", mib=MEMORY + 1)


def test_cpus_are_taken_and_given_back(web: Daemon) -> None:
    for _ in range(3):
        done = web.call("vcpu.set_online", count=1, timeout=60)
        assert done["online"] == [0] and done["confirmed"] is not None
        web.sh("until [ $(nproc) = 1 ]; do usleep 20000; done")
        assert web.call("vcpu.set_online", count=2, timeout=60)["online"] == [0, 1]
        web.sh(
            "until [ $(nproc) = 2 ]; do usleep 20000; done"
        )  # its ports are there a moment before it is online
    with pytest.raises(RpcFault, match="2"):
        web.call("vcpu.set_online", count=3)


def test_a_paused_guest_stands_still_and_then_has_the_right_time(web: Daemon) -> None:
    lag = web.clock()
    uptime = float(web.sh("cut -d' ' -f1 /proc/uptime"))
    assert web.call("guest.pause")["state"] == "paused"
    assert web.call("guest.pause")["state"] == "paused"
    assert {vcpu["state"] for vcpu in web.call("vcpu.list", regs=True)} == {"paused"}
    seen = [(vcpu["exits"], vcpu["regs"]) for vcpu in web.call("vcpu.list", regs=True)]
    time.sleep(5)  # what is tested is that nothing happens
    assert [(vcpu["exits"], vcpu["regs"]) for vcpu in web.call("vcpu.list", regs=True)] == seen
    with pytest.raises(RpcFault, match="resume"):
        web.call("guest.shutdown")
    assert web.call("guest.resume")["state"] == "running"
    # Xen's time goes on while a domain is paused, and so does the guest's
    after = web.clock()
    assert after[0] < lag[1] + 2 and lag[0] < after[1] + 2, (lag, after)
    assert float(web.sh("cut -d' ' -f1 /proc/uptime")) >= uptime + 5
    assert web.sh("dd if=/dev/xvda of=/dev/null bs=1M count=8 2>/dev/null && echo read") == "read"


def test_time_that_was_stolen_is_told_sanely(web: Daemon) -> None:
    def ticks() -> list[int]:
        return [int(n) for n in web.sh("head -n1 /proc/stat").split()[1:]]

    before, began = ticks(), float(web.sh("cut -d' ' -f1 /proc/uptime"))
    web.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    after, ended = ticks(), float(web.sh("cut -d' ' -f1 /proc/uptime"))
    spent = [b - a for a, b in zip(before, after, strict=True)]
    wall = (ended - began) * 100 * 2  # USER_HZ, two CPUs
    assert all(n >= 0 for n in spent), spent
    assert spent[7] <= wall and sum(spent) <= wall * 1.5 + 50, (spent, wall)  # steal; all of it


def test_sysrq_is_pressed(web: Daemon) -> None:
    since = web.call("console.read", since=-1)["end"]
    web.sh("echo 8 > /proc/sys/kernel/printk; echo 1 > /proc/sys/kernel/sysrq")
    web.call("guest.sysrq", key="h", timeout=30)
    web.wait("console:sysrq: HELP", since=since)


def test_a_suspend_is_refused_and_the_guest_goes_on(web: Daemon) -> None:
    web.sh("echo mem > /dev/null; true")
    with pytest.raises(RpcFault):
        web.call("guest.shutdown", mode="suspend")
    assert web.sh("echo on") == "on"
