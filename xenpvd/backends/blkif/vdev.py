"""Disk names to device numbers (Xen: docs/man/xen-vbd-interface.7, "Concrete encoding").

``xvda`` is 51712; partitions (``xvda1``), Xen's own notation (``d0p1``) and the extended numbers of xvd disks
and partitions from 16 on are known, ``sd`` and ``hd`` as far as they have numbers. For guests older than that
the number itself can be given, in decimal, hexadecimal or octal (``51712``, ``0xca00``, ``0145000``).
"""

from __future__ import annotations

import re

from xenpvd.errors import BadConfig

_VDEV = re.compile(r"(?P<kind>xvd|sd|hd)(?P<letters>[a-z]{1,6})(?P<part>[1-9]\d{0,2})?", re.ASCII)
_NUMBERED = re.compile(r"d(?P<disk>0|[1-9]\d{0,6})(?:p(?P<part>0|[1-9]\d{0,2}))?", re.ASCII)
_NUMBER = re.compile(
    r"0x(?P<hex>[\da-f]{1,8})|0(?P<octal>[0-7]{1,11})|(?P<decimal>[1-9]\d{0,9})", re.ASCII | re.I
)

_BASES = {"hex": 16, "octal": 8, "decimal": 10}

_EXTENDED, _RESERVED = 1 << 28, 2 << 28
_XVD_DISKS = 1 << 20
_XVD_PARTITIONS = 256


def devid(vdev: str) -> int:
    """The number that stands for ``vdev`` in xenstore. Raises :class:`BadConfig`.

    Two names can be one disk (``xvda``, ``d0``, ``51712``): compare numbers.
    """
    if match := _NUMBER.fullmatch(vdev):
        kind = str(match.lastgroup)
        return _given(vdev, int(match[kind], _BASES[kind]))
    if match := _NUMBERED.fullmatch(vdev):
        kind, disk = "xvd", int(match["disk"])
    elif match := _VDEV.fullmatch(vdev):
        kind, disk = match["kind"], _letters(match["letters"])
    else:
        raise _refuse(vdev, "it is no disk name")
    partition = int(match["part"] or 0)

    return _encode(vdev, kind, disk, partition)


def _encode(vdev: str, kind: str, disk: int, partition: int) -> int:
    if kind == "sd":
        if disk < 16 and partition < 16:
            return 8 << 8 | disk << 4 | partition
        raise _refuse(vdev, "there are sda to sdp, with partitions to 15")
    if kind == "hd":
        if disk < 4 and partition < 64:
            major = 3 if disk < 2 else 22
            return major << 8 | (disk & 1) << 6 | partition
        raise _refuse(vdev, "there are hda to hdd, with partitions to 63")
    if disk < 16 and partition < 16:
        return 202 << 8 | disk << 4 | partition
    if disk < _XVD_DISKS and partition < _XVD_PARTITIONS:
        return _EXTENDED | disk << 8 | partition
    raise _refuse(vdev, f"there are {_XVD_DISKS} disks with partitions to {_XVD_PARTITIONS - 1}")


def _given(vdev: str, number: int) -> int:
    """What below 1 << 28 no name stands for is deprecated, but it is what such guests may want."""
    if not 0 < number < _RESERVED:
        raise _refuse(vdev, "numbers from 1 to 536870911 can be disks")
    if number & _EXTENDED:
        canonical = _encode(vdev, "xvd", number >> 8 & _XVD_DISKS - 1, number & _XVD_PARTITIONS - 1)
        if canonical != number:  # to the guest they were two disks of one name
            raise _refuse(vdev, f"that disk's number is {canonical}")
    return number


def _letters(letters: str) -> int:
    """a is 0, z is 25, aa is 26."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def _refuse(vdev: str, why: str) -> BadConfig:
    message = f"cannot use {vdev} as a disk's name: {why}. Use xvda, xvdb and so on."
    return BadConfig(message, [("vdev", why)])
