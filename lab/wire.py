"""What a job and its lab host say to each other over one TCP connection.

First the client: a line with the token, a line of JSON (:class:`Job`), then the code as a tar.
Then both send frames, one byte of kind and four of length (big endian) before the payload. The server's last
frame is EXIT. A client that goes away ends its job.
"""

from __future__ import annotations

import json
import struct
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

HEAD = struct.Struct(">cI")
PORT = 7000
#: on the lab host's console, once it takes jobs
READY = "xenpvd-lab: ready"

#: server to client
STDOUT, STDERR, RESULTS, EXIT = b"O", b"E", b"R", b"X"
#: client to server
STDIN, SIZE, SIGNAL = b"I", b"W", b"K"


class Reader(Protocol):
    """A buffered stream: ``read`` gives fewer bytes than asked for at the end only."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Job:
    """One command for the lab host."""

    argv: list[str]
    cwd: str
    checkout: str
    """the folder over which the code is laid, out of the tar"""
    tar: int
    """bytes of code"""
    environ: dict[str, str] = field(default_factory=dict)
    terminal: tuple[int, int] | None = None
    """(rows, columns): the command gets a terminal of its own"""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def decode(line: bytes) -> Job:
        data = json.loads(line)
        if data["terminal"] is not None:
            data["terminal"] = tuple(data["terminal"])
        return Job(**data)


def unpack(tar: tarfile.TarFile, into: Path) -> None:
    """Extract what our own side has packed, as it was. The filter is a word that only newer Pythons know."""
    tar.extraction_filter = lambda member, path: member
    tar.extractall(into)


def frame(kind: bytes, payload: bytes) -> bytes:
    return HEAD.pack(kind, len(payload)) + payload


def read_frame(stream: Reader) -> tuple[bytes, bytes] | None:
    """The next frame, None if the peer went away."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    kind, length = HEAD.unpack(head)
    payload = stream.read(length)
    return (kind, payload) if len(payload) == length else None
