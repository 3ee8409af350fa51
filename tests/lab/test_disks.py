"""xen-block with the real blkfront: what it makes of what is offered, and that the data is right."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import guest as assets
from tests.lab.conftest import Daemon

SIZE = 64 << 20


@pytest.fixture(scope="module")
def web() -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="xenpvd-test-", dir="/dev/shm"))
    shutil.copyfile(assets.disk(), folder / "xvda.img")
    daemon = Daemon(folder, {**assets.definition(folder / "xvda.img"), "vcpus": 2})
    try:
        yield daemon.start().at_the_shell()
    finally:
        daemon.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def image(web: Daemon) -> Iterator[Path]:
    """A disk of random bytes that is hot-added as xvdb."""
    path = web.folder / "xvdb.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    web.call("drive.add", vdev="xvdb", target=str(path), timeout=90)
    yield path
    web.call("drive.remove", vdev="xvdb", timeout=90)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_blkfront_takes_what_is_offered(web: Daemon, image: Path) -> None:
    (line,) = web.sh("dmesg | grep 'blkfront: xvdb'").splitlines()
    assert "flush diskcache: enabled" in line
    assert "persistent grants: disabled" in line
    assert "indirect descriptors: enabled" in line
    assert web.sh("ls /sys/block/xvdb/mq").split() == ["0", "1"]
    assert int(web.sh("cat /sys/block/xvdb/queue/max_segments")) == 32
    assert int(web.sh("cat /sys/block/xvdb/queue/discard_max_bytes")) > 0
    front = "/local/domain/1/device/vbd/51728"
    assert web.call("xenstore.read", path=f"{front}/multi-queue-num-queues")["text"] == "2"


def test_what_the_guest_reads_writes_and_discards(web: Daemon, image: Path) -> None:
    before = image.read_bytes()
    assert web.sh("dd if=/dev/xvdb bs=1M iflag=direct 2>/dev/null | sha256sum").split()[0] == sha256(before)
    web.sh(
        "dd if=/dev/xvdb of=/dev/xvdb bs=1M count=8 seek=32 iflag=direct oflag=direct conv=fsync 2>/dev/null"
    )
    web.sh("dd if=/dev/xvdb of=/dev/xvdb bs=3k count=500 seek=7000 conv=fsync 2>/dev/null")
    web.sh("blkdiscard -o 1048576 -l 4194304 /dev/xvdb")
    expected = bytearray(before)
    expected[32 << 20 : 40 << 20] = before[: 8 << 20]
    expected[7000 * 3072 : 7500 * 3072] = before[: 500 * 3072]
    expected[1 << 20 : 5 << 20] = bytes(4 << 20)
    assert sha256(image.read_bytes()) == sha256(bytes(expected))
    stats = {drive["vdev"]: drive["stats"] for drive in web.call("drive.list")}["xvdb"]
    assert stats["discards"] >= 1 and stats["flushes"] >= 1 and stats["errors"] == 0
    assert stats["read_bytes"] / stats["reads"] > 64 << 10, "indirect requests are larger than 44 KiB"


def test_the_guest_sees_a_new_size_and_another_image(web: Daemon, image: Path) -> None:
    sectors = "cat /sys/block/xvdb/size"
    since = web.call("daemon.ping")["seq"]
    web.call("drive.resize", vdev="xvdb", size=SIZE * 2)
    assert int(web.sh(f"until [ $({sectors}) = {SIZE * 2 // 512} ]; do usleep 20000; done; {sectors}"))
    assert [e["data"] for e in web.call("events.history", names=["drive.resized"]) if e["seq"] > since] == [
        {"vdev": "xvdb", "size": SIZE * 2}
    ]
    web.sh("printf beyond | dd of=/dev/xvdb bs=1M seek=100 conv=fsync 2>/dev/null")

    copy = image.with_name("copy.img")
    web.call("drive.flush", vdev="xvdb")
    shutil.copyfile(image, copy)
    web.call("drive.swap", vdev="xvdb", target=str(copy))
    web.sh("printf after | dd of=/dev/xvdb bs=1M seek=101 conv=fsync 2>/dev/null")
    for place, old, new in ((100, b"beyond", b"beyond"), (101, bytes(5), b"after")):
        assert image.read_bytes()[place << 20 :].startswith(old)
        assert copy.read_bytes()[place << 20 :].startswith(new)
    assert web.sh("dd if=/dev/xvdb bs=1M skip=100 count=1 2>/dev/null | head -c 6") == "beyond"


def test_persistent_grants_and_large_sectors(web: Daemon) -> None:
    path = web.folder / "xvdc.img"
    path.write_bytes(random.Random(2).randbytes(1 << 20))
    web.call("drive.add", vdev="xvdc", target=str(path), persistent=True, sector_size=4096, timeout=90)
    assert "persistent grants: enabled" in web.sh("dmesg | grep 'blkfront: xvdc'")
    assert web.sh("cat /sys/block/xvdc/queue/logical_block_size") == "4096"
    assert web.sh("cat /dev/xvdc | sha256sum").split()[0] == sha256(path.read_bytes())
    web.sh("dd if=/dev/zero of=/dev/xvdc bs=4k count=16 conv=fsync 2>/dev/null")
    assert path.read_bytes()[: 17 * 4096].rstrip(b"\0") != b"" and not any(path.read_bytes()[: 16 * 4096])
    web.call("drive.remove", vdev="xvdc", timeout=90)


def test_a_disc_goes_in_and_out(web: Daemon) -> None:
    disc = web.folder / "disc.iso"
    disc.write_bytes(b"disc one".ljust(2048 * 100, b"\0"))
    web.call("drive.add", vdev="xvdd", device="cdrom", timeout=90)
    assert web.sh("cd /sys/block/xvdd; cat size ro removable").split() == ["0", "1", "1"]
    web.call("drive.swap", vdev="xvdd", target=str(disc))
    web.sh("until [ $(cat /sys/block/xvdd/size) = 400 ]; do usleep 20000; done")
    assert web.sh("head -c 8 /dev/xvdd") == "disc one"
    web.call("drive.swap", vdev="xvdd", target="")
    web.sh("until [ $(cat /sys/block/xvdd/size) = 0 ]; do usleep 20000; done")
    web.call("drive.remove", vdev="xvdd", timeout=90)


def test_twenty_disks(web: Daemon) -> None:
    names = [f"xvd{letter}" for letter in "efghijklmnopqrstuvwx"]
    for name in names:
        (web.folder / f"{name}.img").write_bytes(name.encode().ljust(1 << 20, b"\0"))
        web.call("drive.add", vdev=name, target=str(web.folder / f"{name}.img"), timeout=90)
    found = web.sh("for d in " + " ".join(names) + "; do head -c 4 /dev/$d; echo; done").split()
    assert found == names
    assert {drive["state"] for drive in web.call("drive.list")} == {"Connected"}
    for name in names:
        web.call("drive.remove", vdev=name, timeout=90)
    assert web.call("xenstore.list", path="/local/domain/1/device/vbd") == ["51712"]
