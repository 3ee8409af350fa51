"""Writes initramfs archives: cpio's newc format (Linux, early-userspace/buffer-format)."""

from __future__ import annotations

import stat


class Cpio:
    """An archive in the making; parents of a path are added by themselves, all owned by root, all dated 0."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._seen: set[str] = set()

    def folder(self, path: str) -> None:
        self._parents(path)
        if path not in self._seen:
            self._entry(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._parents(path)
        self._entry(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        """A character device. The kernel opens /dev/console before /init runs."""
        self._parents(path)
        self._entry(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def finish(self) -> bytes:
        """The whole archive, closed by its trailer."""
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.folder(parent)

    def _entry(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._seen.add(path)
        name = path.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (len(self._seen), mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)
