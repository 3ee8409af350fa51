"""From the settings of an xl.cfg to a guest definition, and what that cannot say (Xen: docs/man/xl.cfg.5)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from xenpvd.config import MEMORY_MIN_MIB, VCPUS_MAX, GuestConfig
from xenpvd.ctl import xl_disk
from xenpvd.ctl.xl_meanings import meaning
from xenpvd.ctl.xl_syntax import Setting, Value, XlFault
from xenpvd.paths import NAME

GRUB_32 = "/usr/lib/grub-xen/grub-i386-xen.bin"
MENU = "GRUB runs inside the guest and reads the grub.cfg of its disk (not the menu.lst of GRUB 0.9)"

_POLICIES = {
    "destroy": "destroy",
    "restart": "restart",
    "preserve": "preserve",
    "rename-restart": "restart",
    "coredump-destroy": "destroy",
    "coredump-restart": "restart",
}
#: xl's names of formats, and ours
_FORMATS = {"": "raw", "raw": "raw", "qcow2": "qcow2", "vhd": "vpc"}
#: xl's defaults; where ours is another one, it is written down
_POLICY_DEFAULTS = {
    "on_poweroff": "destroy",
    "on_reboot": "restart",
    "on_watchdog": "destroy",
    "on_crash": "destroy",
}


class Note(NamedTuple):
    """What of the setting ``key`` is not as it was, and what that means for the guest."""

    key: str
    what: str


def convert(settings: Mapping[str, Setting], name: str) -> tuple[dict[str, Any], list[Note]]:
    """A guest definition, in the order of its keys, and the notes. ``name`` is for a file without one.

    Raises :class:`XlFault` for what makes it impossible.
    """
    conversion = _Conversion(settings)
    return conversion.definition(name), conversion.notes()


class _Conversion:
    def __init__(self, settings: Mapping[str, Setting]) -> None:
        self._settings = settings
        self._used = set[str]()
        self._notes: list[Note] = []
        self._guest = ""

    def definition(self, name: str) -> dict[str, Any]:
        self._guest = self._name(name)
        kind = self._kind()
        kernel = self._kernel()
        shim = self._shim(kind)
        found: dict[str, Any] = {
            "name": self._guest,
            "type": "pv" if shim else kind,
            "memory": self._memory(),
            "vcpus": self._vcpus(),
            **kernel,
            **dict(self._policies()),
            "shim": shim,
            "channel": [*self._channels()],
            "disk": [*self._disks()],
        }
        return {key: value for key, value in found.items() if value not in (None, "", {}, [])}

    def notes(self) -> list[Note]:
        """In the order of the file: those made on the way, and one for each key that nobody took."""
        left = [
            Note(key, meaning(key))
            for key, setting in self._settings.items()
            if key not in self._used and not _is_off(key, setting.value)
        ]
        order = list(self._settings)
        return sorted([*self._notes, *left], key=lambda note: order.index(note.key.partition(" ")[0]))

    def _kind(self) -> str:
        kind, builder = self._text("type"), self._text("builder")
        built = {None: None, "hvm": "hvm", "generic": "pv", "linux": "pv"}.get(builder, builder)
        if kind and built and kind != built:
            raise self._refuse("builder", f"type is {kind}, and builder {builder}")
        key, kind = ("type", kind) if kind else ("builder", built or "pv")
        if kind == "hvm":
            raise self._refuse(
                key, "an HVM guest needs firmware and emulated devices, which are not here. Use QEMU for it"
            )
        if kind not in ("pv", "pvh"):
            raise self._refuse(key, f"there is no type of guest {kind!r}")
        return kind

    def _name(self, default: str) -> str:
        name = self._text("name") or default
        fit = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).lstrip("._-")[:63]
        if not NAME.fullmatch(fit):
            raise XlFault(f"name {name!r}: names take a-z, 0-9, '.', '_' and '-'.")
        if fit != name and "name" in self._settings:
            self._note("name", f"{name!r} becomes {fit}: names take a-z, 0-9, '.', '_' and '-', 63 at most")
        return fit

    def _memory(self) -> int | None:
        memory, most = self._number("memory"), self._number("maxmem")
        if memory is not None and 0 < memory < MEMORY_MIN_MIB:
            self._note(
                "memory", f"{memory} becomes {MEMORY_MIN_MIB}, the least that a VM with the shim takes"
            )
            memory = MEMORY_MIN_MIB
        if most is not None and memory is None:
            memory = max(most, MEMORY_MIN_MIB)
        elif most is not None and memory is not None and most > memory:
            way = f"memory = {most}, and when it runs: xenpvctl memory set {self._guest} {memory}"
            self._note("maxmem", f"the guest cannot grow beyond its {memory} MiB. To keep the room: {way}")
        return memory

    def _vcpus(self) -> int | None:
        vcpus, most = self._number("vcpus"), self._number("maxvcpus")
        if vcpus is not None and vcpus > VCPUS_MAX:
            self._note("vcpus", f"{vcpus} becomes {VCPUS_MAX}, the most there can be")
            vcpus = VCPUS_MAX
        elif most is not None and most > (vcpus or 1):
            most = min(most, VCPUS_MAX)
            way = f"vcpus = {most}, and when it runs: xenpvctl vcpu set {self._guest} {vcpus or 1}"
            self._note("maxvcpus", f"the guest cannot have more than it starts with. To keep the room: {way}")
        return vcpus

    def _kernel(self) -> dict[str, str | None]:
        boot_loader, firmware = self._text("bootloader"), self._text("firmware")
        kernel, ramdisk, cmdline = self._text("kernel"), self._text("ramdisk"), self._cmdline()
        if firmware and firmware not in ("pvgrub32", "pvgrub64"):
            raise self._refuse("firmware", f"{firmware} is for HVM guests")
        if boot_loader or firmware:
            key, program = ("firmware", firmware) if firmware else ("bootloader", boot_loader)
            self._note(key, f"{PurePosixPath(program or '').name} becomes pvgrub: {MENU}")
            for key in ("kernel", "ramdisk", "cmdline", "root", "extra"):
                if self._text(key):
                    self._note(key, "left out: the guest's GRUB menu says it")
            return {"kernel": GRUB_32 if firmware == "pvgrub32" else "pvgrub"}
        if not kernel:
            raise XlFault("there is neither kernel nor bootloader: nothing says what the guest shall run.")
        if PurePosixPath(kernel).name.startswith("pv-grub"):
            self._note("kernel", f'this old GRUB was not tried here; else kernel = "pvgrub": {MENU}')
        for key, path in (("kernel", kernel), ("ramdisk", ramdisk)):
            if path and not path.startswith("/"):
                self._note(key, f"{path!r} counts from the folder of the TOML file")
        return {"kernel": _file(kernel), "ramdisk": _file(ramdisk), "cmdline": cmdline}

    def _cmdline(self) -> str:
        cmdline, root, extra = self._text("cmdline"), self._text("root"), self._text("extra")
        if cmdline is None:
            return " ".join([*([f"root={root}"] if root else []), *([extra] if extra else [])])
        for key, value in (("root", root), ("extra", extra)):
            if value:
                self._note(key, "left out, as xl does where there is a cmdline")
        return cmdline

    def _shim(self, kind: str) -> dict[str, str]:
        wanted, path = self._number("pvshim"), self._text("pvshim_path")
        cmdline, extra = self._text("pvshim_cmdline"), self._text("pvshim_extra")
        if not wanted or kind != "pvh":
            return {}  # xl looks at none of them then
        words = [word for word in (cmdline or "").split() if word != "pv-shim" and "console=" not in word]
        if cmdline:
            self._note(
                "pvshim_cmdline", "it always begins with pv-shim console=xen; other words are in shim.extra"
            )
        found = {"path": path or "auto", "extra": " ".join([*words, *([extra] if extra else [])])}
        return {key: value for key, value in found.items() if value}

    def _policies(self) -> Iterator[tuple[str, str]]:
        for key, default in _POLICY_DEFAULTS.items():
            policy = self._policy(key, self._text(key) or default)
            if key in self._settings or policy != GuestConfig.model_fields[key].default:
                yield key, policy

    def _policy(self, key: str, word: str) -> str:
        if word not in _POLICIES:
            raise self._refuse(key, f"{word} cannot be done for a PV guest")
        if word.startswith("coredump"):
            self._note(key, f"{word} becomes {_POLICIES[word]}: no dump of its memory is written")
        elif word != _POLICIES[word]:
            self._note(key, f"{word} becomes {_POLICIES[word]}: what is left of the old guest is not kept")
        return _POLICIES[word]

    def _channels(self) -> Iterator[dict[str, str]]:
        for text in self._texts("channel"):
            pairs = (pair.partition("=") for pair in text.split(","))
            fields = {key.strip(): value.strip() for key, _, value in pairs}
            name = fields.get("name", "")
            if not name:
                raise self._refuse("channel", f"{text!r} has no name")
            where = fields.get("path") or "a pty"
            self._note(
                "channel", f"{name} is not at {where}, but at: xenpvctl console {self._guest} -c {name}"
            )
            yield {"name": name}

    def _disks(self) -> Iterator[dict[str, Any]]:
        for text in self._texts("disk"):
            try:
                disk = xl_disk.parse(text)
            except XlFault as fault:
                raise XlFault(str(fault), self._settings["disk"].line) from None
            key = f"disk {disk.vdev}"
            self._notes += [Note(key, f"{what} is left out: {means}") for what, means in disk.left_out]
            if disk.script or disk.backend:
                how = f"the script {disk.script}" if disk.script else f"the domain {disk.backend}"
                self._notes.append(
                    Note(key, f"the disk is left out, as {how} provides it. Attach it to this host, "
                    "and write a [[disk]] with its block device")
                )  # fmt: skip
                continue
            yield self._disk(key, disk)

    def _disk(self, key: str, disk: xl_disk.XlDisk) -> dict[str, Any]:
        target = disk.target if disk.target.startswith("/") or not disk.target else f"/dev/{disk.target}"
        form = _FORMATS.get(disk.format)
        if form is None:
            raw = str(PurePosixPath(target).with_suffix(".raw"))
            command = shlex.join(["qemu-img", "convert", "-O", "raw", target, raw])
            self._notes.append(
                Note(key, f"there are no images of format {disk.format} here. Convert it first: {command}")
            )
            target = raw
        if disk.shared:
            self._notes.append(Note(key, "it is no longer shared: an image has one writer, or only readers"))
        found: dict[str, Any] = {"vdev": disk.vdev}
        if disk.cdrom:
            found["device"] = "cdrom"
        if target:
            found["target"] = target
        if disk.readonly and not disk.cdrom:
            found["access"] = "ro"
        if form not in (None, "raw"):
            found["format"] = form
        if not disk.discard:
            found["discard"] = False
        return found

    def _text(self, key: str) -> str | None:
        self._used.add(key)
        if key not in self._settings:
            return None
        value = self._settings[key].value
        if isinstance(value, list):
            raise self._refuse(key, "a list cannot be here")
        return value

    def _number(self, key: str) -> int | None:
        text = self._text(key)
        if text is None:
            return None
        try:
            return int(text, 8) if re.fullmatch("0[0-7]+", text) else int(text, 0)
        except ValueError:
            raise self._refuse(key, f"{text[:40]!r} is no number") from None

    def _texts(self, key: str) -> list[str]:
        self._used.add(key)
        if key not in self._settings:
            return []
        value = self._settings[key].value
        texts = [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
        if not isinstance(value, list) or len(texts) < len(value):
            raise self._refuse(key, "a list of strings is wanted")
        return texts

    def _note(self, key: str, what: str) -> None:
        self._notes.append(Note(key, what))

    def _refuse(self, key: str, why: str) -> XlFault:
        return XlFault(f"{key}: {why}.", self._settings[key].line if key in self._settings else None)


def _is_off(key: str, value: Value) -> bool:
    return value in ("", []) or (value == "0" and key not in ("cpus", "cpus_soft"))  # there it is a CPU


def _file(path: str | None) -> str | None:
    """A file that is called as one of our words would be taken for it."""
    return f"./{path}" if path in ("auto", "pvgrub") else path
