"""What came along with a message: one can be taken, all else is closed."""

from __future__ import annotations

import os

import pytest

from xenpvd.errors import BadConfig, HostError
from xenpvd.rpc.rights import RIGHTS_MAX, Rights


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")  # noqa: PTH110


def descriptors(count: int) -> list[int]:
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]


def test_the_one_that_came_is_who_takes_it_s() -> None:
    rights, (fd,) = Rights(), descriptors(1)
    assert not rights
    rights.add([fd], lost=False)
    assert rights and rights.take() == fd and not rights
    rights.close()
    assert is_open(fd)
    os.close(fd)
    with pytest.raises(BadConfig, match=r"none came with this call\. Send it along"):
        rights.take()


@pytest.mark.parametrize(("count", "lost"), [(2, False), (1, True), (RIGHTS_MAX + 5, True)])
def test_of_several_none_is_taken(count: int, lost: bool) -> None:
    rights, fds = Rights(), descriptors(count)
    for fd in fds:
        rights.add([fd], lost=False)
    rights.add([], lost=lost)
    assert sum(map(is_open, fds)) == min(count, RIGHTS_MAX)
    with pytest.raises(BadConfig, match=r"more than one came with this call\. Send one"):
        rights.take()
    rights.close()
    rights.close()
    assert not any(map(is_open, fds))


def test_the_kernel_had_no_room() -> None:
    rights = Rights()
    rights.add([], lost=True)
    assert rights
    with pytest.raises(HostError, match="LimitNOFILE"):
        rights.take()
