"""A disk while its host meddles: no byte is ever another one, and what was flushed outlives the daemon."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import fio
from lab import guest as assets
from tests.lab.conftest import Daemon

MIB = 1 << 20
SIZE = 16 * MIB
KILLS = int(os.environ.get("XENPVD_GUEST_KILLS", "2"))


@pytest.fixture
def image(folder: Path) -> Path:
    path = folder / "xvdb.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def definition(folder: Path, image: Path) -> dict[str, Any]:
    """The demo guest of two vCPUs, with the programs on xvda; ``image`` is xvdb."""
    program, tools = folder / "writer", folder / "xvda.img"
    source = Path(__file__).with_name("writer.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    files = {"fio": fio.program().read_bytes(), "verify": VERIFY.encode(), "writer": program.read_bytes()}
    assets.make_disk(tools, SIZE, files)
    made = assets.definition(tools, vcpus=2)
    made["disk"].append({"vdev": "xvdb", "target": str(image)})
    return made


# --- fio verifies ------------------------------------------------------------------------------------------

#: each pass writes all of its part in random order, reads pieces back meanwhile, and all of it in the end
VERIFY = """\
[verify]
filename=/dev/xvdb
size=4m
ioengine=io_uring
direct=1
iodepth=16
rw=randwrite
bsrange=4k-64k
fsync=32
randrepeat=0
verify=crc32c
verify_backlog=32
verify_fatal=1
"""
#: for ever, or until a pass fails, which is said in full: :meth:`Daemon.wait` shows it when it gives up
PASSES = """n=0; while /mnt/fio --eta=never /mnt/verify > fio.log 2>&1
do n=$((n+1)); echo verified-$n-; done; cat fio.log"""


def meddling(daemon: Daemon, image: Path) -> Iterator[Callable[[], object]]:
    """What the host does to xvdb, one thing after the other."""

    def limit(**limits: Any) -> Callable[[], object]:
        return lambda: daemon.call("drive.set_limits", vdev="xvdb", **limits)

    def pause_and_resume() -> None:
        for _ in range(5):
            daemon.call("guest.pause")
            daemon.call("guest.resume")

    def add_and_remove() -> None:
        other = image.with_name("xvdc.img")
        other.write_bytes(bytes(MIB))
        for _ in range(2):
            daemon.call("drive.add", vdev="xvdc", target=str(other), timeout=90)
            daemon.call("drive.remove", vdev="xvdc", timeout=90)

    def limit_and_free() -> None:
        for _ in range(10):
            limit(ops_per_second=1000)()
            limit()()

    def another_image() -> None:
        daemon.call("guest.pause")
        before = None
        while (now := stats(daemon)) != before or now["in_flight"]:  # until all that was asked for is done
            before = now
        shutil.copyfile(image, image.with_name("copy.img"))
        daemon.call("drive.swap", vdev="xvdb", target=str(image.with_name("copy.img")))
        daemon.call("guest.resume")

    yield limit(ops_per_second=150, burst=0.0)
    yield limit(bytes_per_second=2 * MIB)
    yield limit_and_free
    yield lambda: [daemon.call("drive.flush", vdev="xvdb") for _ in range(5)]
    yield lambda: daemon.call("drive.resize", vdev="xvdb", size=2 * SIZE)
    yield pause_and_resume
    yield add_and_remove
    yield another_image


def stats(daemon: Daemon) -> dict[str, int]:
    found: dict[str, int] = {drive["vdev"]: drive["stats"] for drive in daemon.call("drive.list")}["xvdb"]
    return found


@pytest.mark.timeout(400)
def test_fio_finds_all_that_it_wrote_whatever_the_host_does(daemon: Daemon, image: Path) -> None:
    daemon.start().at_the_shell()
    daemon.call("console.write", text=PASSES.replace("\n", ";") + "\n")
    daemon.wait("console:verified-1-")
    for meddle in meddling(daemon, image):
        meddle()
        text = daemon.call("console.read", max=128 << 10)["text"]
        # the pass that is under way, and one that has begun after it
        passes = 2 + max(int(number) for number in re.findall(r"verified-(\d+)-", text))
        daemon.wait(f"console:verified-{passes}-")
    found = stats(daemon)
    assert found["errors"] == 0 and found["flushes"] > 0, found


# --- the daemon is killed ----------------------------------------------------------------------------------

SECTOR = 512
WORDS = SECTOR // 8
LONGEST = 512
WRITERS = 4
MASK = (1 << 64) - 1
SECTORS = SIZE // SECTOR
PART = SECTORS // WRITERS


def mix(a: int, b: int) -> int:
    """writer.c's, as is all that follows from it."""
    z = (a * 0x9E3779B97F4A7C15 + b) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def extent(writer: int, sequence: int) -> range:
    """The sectors that a writer writes with this sequence."""
    chance = mix(writer, sequence)
    length = 1 + chance % LONGEST
    first = writer * PART + (chance >> 32) % (PART - length)
    return range(first, first + length)


def sector(number: int, sequence: int) -> tuple[int, ...]:
    base = mix(number, sequence)
    return (sequence, *((base + word) & MASK for word in range(1, WORDS)))


def check(data: bytes, before: list[int], begin: int, flushed: list[int]) -> list[int]:
    """The sequence of each sector of an image. ``before`` are those until the writers went on, from ``begin``
    to what they have ``flushed`` at least."""
    least = list(before)
    for writer, last in enumerate(flushed):
        for sequence in range(begin, last + 1):
            sectors = extent(writer, sequence)
            least[sectors.start : sectors.stop] = [sequence] * len(sectors)
    found, faults = [], []
    for number, words in enumerate(struct.iter_unpack(f"<{WORDS}Q", data)):
        found.append(sequence := words[0])
        if words != (sector(number, sequence) if sequence else (0,) * WORDS):
            faults.append(f"sector {number} is torn, or of {sequence} no more")
        elif sequence != least[number]:  # then it is of a later write, which nobody has said is flushed
            writer = number // PART
            if sequence <= flushed[writer] or number not in extent(writer, sequence):
                faults.append(f"sector {number} is of {sequence}, not of {least[number]}: a lost write")
    assert not faults, (len(faults), faults[:10], flushed)
    return found


@pytest.mark.timeout(120 + 90 * KILLS)
def test_what_was_flushed_is_there_after_sigkill(daemon: Daemon, image: Path) -> None:
    """P1."""
    chance = random.Random()
    found = [0] * SECTORS
    for kill in range(KILLS):
        begin = max(found) + 1
        daemon.start().at_the_shell()
        if kill % 2:  # what is limited, if only to so much, is served by the plain plane
            daemon.call("drive.set_limits", vdev="xvdb", ops_per_second=1 << 30)
        since = daemon.call("console.read", since=-1)["end"]
        daemon.call("console.write", text=f"/mnt/writer /dev/xvdb {WRITERS} {begin}\n")
        until = f"flushed {chance.randrange(WRITERS)} {begin + chance.randrange(2, 80)}"
        daemon.wait(f"console:{until}", since=since)
        time.sleep(chance.random() / 20)  # nothing is waited for: any moment of a request will do
        text = daemon.call("console.read", since=since, max=128 << 10)["text"]
        daemon.kill()
        flushed = [begin - 1] * WRITERS
        for writer, sequence in re.findall(r"flushed (\d) (\d+)\r?\n", text):
            flushed[int(writer)] = int(sequence)
        found = check(image.read_bytes(), found, begin, flushed)
        later = sum(sequence > flushed[number // PART] for number, sequence in enumerate(found))
        print(f"kill {kill + 1}: sequences {begin} to {flushed}, and {later} sectors that came later")
