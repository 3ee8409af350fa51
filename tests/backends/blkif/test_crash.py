"""The daemon is killed under writes: what was flushed is in the image, and no sector is torn."""

from __future__ import annotations

import os
import random
import signal
import struct
from pathlib import Path

import pytest

from tests.fakes.blkfront import BlkRing, pack_request
from tests.fakes.disk import Disk
from xenpvd.abi.io_blkif import BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE

ROUNDS = int(os.environ.get("XENPVD_CRASHES", "40"))
SECTORS = 64
WORD = struct.Struct("<Q")


def guest(path: Path, native: bool, seed: int, flushed: int) -> None:
    """Writes ever larger numbers all over sectors, and tells by the pipe ``flushed`` which are safe."""
    rng, disk = random.Random(seed), Disk(path, native=native)
    ring: BlkRing = disk.start()
    pages = [ring.data_page(readonly=True) for _ in range(4)]
    number = 0
    latest: dict[int, int] = {}
    while True:
        slots = []
        for n, (page, gref) in enumerate(pages):
            number += 1
            sector = rng.randrange(SECTORS // 4) * 4 + n  # no two of them at once
            page.write(0, WORD.pack(number) * 64)
            slots.append(pack_request(BLKIF_OP_WRITE, id=n, sector=sector, segments=[(gref, 0, 0)]))
            latest[sector] = number
        assert all(status == 0 for _, _, status in ring.do(*slots))
        if rng.random() < 0.3:
            assert ring.do(pack_request(BLKIF_OP_FLUSH_DISKCACHE))[0][2] == 0
            os.write(flushed, b"".join(WORD.pack(latest.get(n, 0)) for n in range(SECTORS)))


@pytest.mark.timeout(300)
def test_sigkill_under_writes(tmp_path: Path, native: bool) -> None:
    rng = random.Random(0)
    told = 0
    for seed in range(ROUNDS):
        path = tmp_path / f"{seed}.img"  # io_uring may hold on to that of the round before for a moment
        path.write_bytes(bytes(SECTORS * 512))
        reading, flushed = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                guest(path, native, seed, flushed)
            finally:
                os._exit(1)
        os.close(flushed)
        with os.fdopen(reading, "rb") as pipe:
            record = pipe.read(SECTORS * 8)  # it has flushed once; it goes on for a while
            for _ in range(rng.randrange(20)):
                record = pipe.read(SECTORS * 8)
            os.kill(child, signal.SIGKILL)
            rest = pipe.read()
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the guest failed: see its traceback"
        if len(rest) >= SECTORS * 8:
            whole = len(rest) // (SECTORS * 8) * SECTORS * 8
            record = rest[whole - SECTORS * 8 : whole]
        safe = [number for (number,) in WORD.iter_unpack(record)]
        image = path.read_bytes()
        for n in range(SECTORS):
            numbers = {number for (number,) in WORD.iter_unpack(image[n * 512 : (n + 1) * 512])}
            assert len(numbers) == 1, f"round {seed}: sector {n} is torn"
            assert numbers.pop() >= safe[n], f"round {seed}: sector {n} has lost what was flushed"
        told += sum(number > 0 for number in safe)
    assert told > ROUNDS
