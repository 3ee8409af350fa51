"""Reads one disk of an xl.cfg, as ``phy:/dev/vg0/web1,xvda,w`` (Xen: docs/man/xl-disk-configuration.5).

Positional parameters, named ones and flags, in any mixture, and the prefixes of xend's time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from xenpvd.ctl.xl_syntax import XlFault

#: How xend said which program serves the image; today all of them mean nothing
_PREFIX = re.compile(r"(?P<word>[a-z][a-z0-9]*):(?P<more>[a-z0-9]?)")
_IGNORED = ("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")
_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd")

FORMATS = ("raw", "qcow", "qcow2", "vhd", "qed")
_READ_ONLY, _WRITABLE, _SHARED = ("r", "ro"), ("w", "rw"), ("w!", "r!")

#: Flags and named parameters that change nothing about what is stored, with what the guest notices
_MEANS = {
    "backendtype": "disks are served by xenpvd itself",
    "direct-io-safe": "disks are served by xenpvd itself",
    "colo": "there is no replication here",
    "untrusted": "the guest is not told to distrust the disk",
    "specification": "the guest sees a Xen disk, not a virtio one: its vdev must be one that it expects",
}


@dataclass
class XlDisk:
    """What a specification says; ``left_out``: parameters without a counterpart, and what that means."""

    target: str = ""
    format: str = ""
    vdev: str = ""
    readonly: bool = False
    cdrom: bool = False
    discard: bool = True
    shared: bool = False
    script: str = ""
    backend: str = ""
    left_out: list[tuple[str, str]] = field(default_factory=list)


def parse(text: str) -> XlDisk:
    """Raises :class:`XlFault` without a line."""
    reader = _Reader(text)
    reader.read()
    return reader.disk


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self.disk = XlDisk()
        self._prefixed = False
        self._positions: list[tuple[str, Callable[[str], None]]] = [
            ("target", self._set_target),
            ("format", self._set_format),
            ("vdev", self._set_vdev),
            ("access", self._set_access),
        ]
        self._taken = set[str]()

    def read(self) -> None:
        rest = self._text
        while rest := rest.lstrip():
            if rest.startswith("target="):  # the rest is the path, commas and all
                self._name("target", rest.removeprefix("target=").removesuffix(","))
                break
            if (prefix := self._prefix(rest)) is not None:
                rest = rest[prefix:]
                continue
            word, _, rest = rest.partition(",")
            name, equals, value = word.partition("=")
            if equals:
                self._name(name.strip(), value.strip())
            elif not self._flag(word.strip()):
                self._position(word.strip())
        if not self.disk.vdev:
            raise self._refuse("it does not say what the guest shall call it (xvda)")
        if not self.disk.target and not self.disk.cdrom:
            raise self._refuse("it has no target")

    def _prefix(self, rest: str) -> int | None:
        """How long the prefix at the beginning of ``rest`` is."""
        if (found := _PREFIX.match(rest)) is None:
            return None
        word = found["word"]
        if word in _FORMAT_PREFIXES:
            self._set_format(word)
        elif word in _SCRIPT_PREFIXES:
            self.disk.script = f"block-{word}"
        elif found["more"] and word not in _IGNORED:  # "hdc:cdrom" is a vdev
            return None
        elif word not in _IGNORED:
            raise self._refuse(f"there is no prefix {word}:")
        self._prefixed = True
        return found.start("more")

    def _flag(self, word: str) -> bool:
        if word == "cdrom":
            self.disk.cdrom = True
        elif word in ("discard", "no-discard"):
            self.disk.discard = word == "discard"
        elif word in ("direct-io-safe", "untrusted", "colo"):
            self.disk.left_out.append((word, _MEANS[word]))
        else:
            return word in ("trusted", "no-colo")
        return True

    def _name(self, name: str, value: str) -> None:
        for position, set_it in self._positions:
            if name == position:
                if (name == "target" and self.disk.target) or (name == "vdev" and self.disk.vdev):
                    raise self._refuse(f"{name} is there twice")
                set_it(value)
                return
        if name == "devtype":
            if value not in ("cdrom", "disk"):
                raise self._refuse(f"there is no devtype {value}")
            self.disk.cdrom = value == "cdrom"
        elif name == "script":
            self.disk.script = value
        elif name == "backend":
            self.disk.backend = "" if value in ("0", "dom0", "Domain-0") else value
        elif name == "specification":
            if value == "virtio":
                self.disk.left_out.append((f"{name}={value}", _MEANS[name]))
        elif name == "backendtype":
            self.disk.left_out.append((f"{name}={value}", _MEANS[name]))
        elif name in ("colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk"):
            self.disk.left_out.append((name, _MEANS["colo"]))
        elif "/" in name:
            raise self._refuse("a path with an = in it comes last, as target=PATH")
        elif name != "grant_usage":  # of virtio's
            raise self._refuse(f"there is no parameter {name}")

    def _position(self, word: str) -> None:
        """The first of the parameters that have no value yet; after a prefix none is the format."""
        for name, set_it in self._positions:
            if name in self._taken or (name == "format" and self._prefixed):
                continue
            if name == "format" and not self.disk.target and ":" in word:  # ",hdc:cdrom,r"
                self._taken.add("format")
                self._set_vdev(word)
            else:
                set_it(word)
            return
        raise self._refuse(f"what is {word!r} at its end?")

    def _set_target(self, word: str) -> None:
        self._taken.add("target")
        self.disk.target = word

    def _set_format(self, word: str) -> None:
        self._taken.add("format")
        if word in ("", "empty"):
            return
        if word not in FORMATS:
            raise self._refuse(f"there is no format {word}")
        if self.disk.format not in ("", word):
            raise self._refuse(f"it is {self.disk.format} and {word} at once")
        self.disk.format = word

    def _set_vdev(self, word: str) -> None:
        vdev, colon, kind = word.rpartition(":")
        if colon:
            if kind not in ("cdrom", "disk"):
                raise self._refuse(f"there is no kind of disk {kind}")
            self.disk.cdrom = kind == "cdrom"
        self.disk.vdev = vdev if colon else word
        self._taken.add("vdev")

    def _set_access(self, word: str) -> None:
        self._taken.add("access")
        if word not in ("", *_READ_ONLY, *_WRITABLE, *_SHARED):
            raise self._refuse(f"there is no access {word}")
        self.disk.readonly = word in (*_READ_ONLY, "r!")
        self.disk.shared = word in _SHARED

    def _refuse(self, why: str) -> XlFault:
        return XlFault(f"disk {self._text!r}: {why}.")
