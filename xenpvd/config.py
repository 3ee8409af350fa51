"""What a guest is: the one model behind the TOML file, ``guest.start`` and ``xenpvctl check``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from xenpvd import patterns
from xenpvd.errors import BadConfig
from xenpvd.paths import BY_DESCRIPTOR, DESCRIPTOR, NAME, REMOTE, anchor
from xenpvd.views import NO_LIMITS, DriveLimits

MEMORY_MIN_MIB = 64

#: Each may have MAX_QUEUES threads and as many event channels.
MAX_DISKS = 64
MEMORY_MAX_MIB = 1 << 20
VCPUS_MAX = 32

#: Those that the metrics themselves have (docs/metrics.md), and what scrapers put to them
LABELS = (
    "guest", "code", "console", "instance", "job", "kind", "le", "method", "operation", "phase", "quota",
    "result", "state", "type", "vcpu", "vdev", "version",
)  # fmt: skip

_NAME, _PATH = rf"^{NAME.pattern}$", r"^/[^\x00]*$"
_VDEV = r"^((xvd|sd|hd|d)[a-z0-9p]{1,12}|0[xX][0-9A-Fa-f]{1,8}|[0-9]{1,12})$"
_CHANNEL = _DESCRIPTOR = rf"^{DESCRIPTOR.pattern}$"
_LABEL = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
_MEDIUM = rf"^((/|nbd://|nbd\+unix://)[^\x00]*|{BY_DESCRIPTOR}{DESCRIPTOR.pattern})?$"
_KERNEL = r"^(pvgrub|/[^\x00]*)$"
_SHIM = r"^(auto|/[^\x00]*)$"
_WHO = r"^(user|group):[A-Za-z0-9_][A-Za-z0-9._-]*$"
_READY = r"^(created|shim|kernel|xenbus|devices|console:.+|xenstore:[A-Za-z0-9/@_.-]+)$"
_XEN_VERSION = r"^[1-9]\.[0-9]{1,3}$"


#: What a guest can be waited for by, beside its phases and states
SIGN = re.compile(r"console:.+|xenstore:[A-Za-z0-9/@_.-]+", re.DOTALL)


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    if (found := re.fullmatch(r"([0-9]{1,15})([KMGT]?)", value)) is None:
        raise ValueError('it must be a number of bytes, or a text as "64K", "10M", "1G"')
    return int(found[1]) << 10 * " KMGT".index(found[2] or " ")


def _regex(value: str) -> str:
    patterns.compile(value)
    return value


def _channel(name: str) -> str:
    if name in ("0", "xen"):
        raise ValueError(f"{name} is a console that every guest has")
    return name


def _label(name: str) -> str:
    if name in LABELS or name.startswith("__"):
        raise ValueError(f"{name} is a label that the metrics have themselves")
    return name


Name = Annotated[str, Field(pattern=_NAME, description="the guest's name")]
#: A path as the daemon sees it; relative ones have a meaning only beside a file (``paths.anchor``).
AbsolutePath = Annotated[str, Field(pattern=_PATH, max_length=4096)]
#: The same, or a descriptor that the daemon has, or nothing: an empty tray.
Medium = Annotated[str, Field(pattern=_MEDIUM, max_length=4096)]
DescriptorName = Annotated[
    str, Field(pattern=_DESCRIPTOR, description="as a disk's target names it: fd:NAME")
]
#: Bytes, as a number or with a unit of 1024: "64K", "10M", "1G".
Size = Annotated[int, BeforeValidator(_bytes)]
Regex = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_regex)]
#: What to do when a life is over: preserve keeps the daemon, and what the guest said, for a look.
Policy = Literal["destroy", "restart", "preserve"]
ChannelName = Annotated[
    str,
    Field(pattern=_CHANNEL, description="as the guest and viewers know it"),
    AfterValidator(_channel),
]
LabelName = Annotated[str, Field(pattern=_LABEL), AfterValidator(_label)]
LabelValue = Annotated[str, Field(max_length=128)]
Vdev = Annotated[str, Field(pattern=_VDEV, description="as Xen names it: xvda, xvdb1, or its number")]

#: pydantic's types of error and our patterns, in an operator's words; the fields are the error's context
_WORDS = {
    "extra_forbidden": "there is no such key",
    "missing": "it is missing",
    **dict.fromkeys(("model_type", "dict_type"), "it must be a table"),
    **dict.fromkeys(("tuple_type", "list_type"), "it must be a list"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "it must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "it must be a number"),
    "int_parsing_size": "it is too large",
    "finite_number": "it must be a finite number",
    "string_type": "it must be a text",
    "literal_error": "it must be {expected}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than_equal": "it must be at most {le}",
    "less_than": "it must be less than {lt}",
    "string_too_short": "it must have {min_length} or more characters",
    "string_too_long": "it must have at most {max_length} characters",
    "too_short": "it must have {min_length} or more items",
    "too_long": "it must have at most {max_length} items",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "{discriminator} is missing",
    _NAME: "it takes a-z, 0-9, '.', '_' and '-', begins with a letter or digit, and has 63 at most",
    _READY: "it must be created, shim, kernel, xenbus, devices, console:TEXT or xenstore:PATH",
    _WHO: "it must be user:NAME or group:NAME",
    _PATH: "it must be an absolute path",
    _MEDIUM: "it must be an absolute path, fd:NAME, nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH",
    _KERNEL: 'it must be an absolute path, or "pvgrub"',
    _SHIM: 'it must be an absolute path, or "auto"',
    _CHANNEL: "it takes letters, digits, '.', '_' and '-', and 64 at most",
    _LABEL: "it takes letters, digits and '_', begins with no digit, and has 64 at most",
    _VDEV: "it must be a disk's name, as xvda or xvdb1, or its number",
    _XEN_VERSION: "it must be two numbers, as 4.17",
}


class Strict(BaseModel):
    """Unknown keys are refused before anything happens."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ShimConfig(Strict):
    """Xen's PV shim: the small Xen that runs inside the VM, between it and the PV kernel."""

    path: str = Field(
        "auto",
        pattern=_SHIM,
        max_length=4096,
        description="the xen-shim file; auto searches where Debian's xen-utils put it",
    )
    extra: str = Field("", max_length=512, description="more words for its command line, as loglvl=all")


class LimitsConfig(Strict):
    """How much of its storage a disk may use; 0 is no limit."""

    bytes_per_second: int = Field(0, ge=0, le=1 << 40, description="all its rings together")
    ops_per_second: int = Field(0, ge=0, le=1 << 30, description="requests, all its rings together")
    burst: float = Field(
        1.0, ge=0, le=3600, allow_inf_nan=False, description="seconds of both that an idle disk saves up"
    )

    def view(self) -> DriveLimits:
        return DriveLimits(**self.model_dump()) if self.bytes_per_second or self.ops_per_second else NO_LIMITS


Cache = Literal["writeback", "writethrough", "none", "directsync"]
#: Those past the host's page cache (O_DIRECT), and those whose writes have ended when they are stored.
DIRECT: tuple[Cache, ...] = ("none", "directsync")
SYNC: tuple[Cache, ...] = ("writethrough", "directsync")


class DiskConfig(Strict):
    """One xen-block disk."""

    vdev: Vdev
    device: Literal["disk", "cdrom"] = Field("disk", description="a cdrom is read-only, and may be empty")
    target: Medium = Field(
        "",
        validate_default=True,
        description="an image file, a block device, or what an NBD server has; fd:NAME is a descriptor that "
        "the daemon was given",
    )
    access: Literal["rw", "ro"] = Field("rw", description="ro: the guest may only read")
    format: Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"] = Field(
        "raw", description="of the image; others than raw need qemu-storage-daemon"
    )
    sector_size: Literal[512, 4096] = Field(
        512, description="bytes of a logical sector; 4096 only for a disk that has been partitioned so"
    )
    cache: Cache = Field(
        "writeback",
        description="how the host caches it; writethrough: a write is stored when it ends; none: O_DIRECT; "
        "directsync: both",
    )
    discard: bool = Field(True, description="offer it, if what the image lies on can do it")
    persistent: bool = Field(
        False, description="offer persistent grants: the guest copies all data through a few pages then"
    )
    limits: LimitsConfig = LimitsConfig()

    @field_validator("target")
    @classmethod
    def _has_one(cls, target: str, info: ValidationInfo) -> str:
        if not target and info.data.get("device") == "disk":
            raise ValueError("a disk has one; only a cdrom can be empty")
        return target

    @field_validator("format")
    @classmethod
    def _is_raw_elsewhere(cls, form: str, info: ValidationInfo) -> str:
        target = info.data.get("target", "")
        if form != "raw" and target.startswith(REMOTE):
            raise ValueError("what an NBD server has is raw; the server knows about formats")
        if form != "raw" and target.startswith(BY_DESCRIPTOR):
            raise ValueError("a descriptor is of a raw image; give the path of one of another format")
        return form

    @field_validator("cache")
    @classmethod
    def _is_ours(cls, cache: Cache, info: ValidationInfo) -> Cache:
        needs_engine = info.data.get("format") != "raw" or info.data.get("target", "").startswith(REMOTE)
        if cache != "writeback" and needs_engine:
            raise ValueError("it is writeback for images of other formats, and for NBD")
        if cache in DIRECT and info.data.get("target", "").startswith(BY_DESCRIPTOR):
            raise ValueError(
                "it is writeback or writethrough for fd:NAME: O_DIRECT would be the sender's, too"
            )
        return cache

    @property
    def needs_engine(self) -> bool:
        """Whether another process serves its image."""
        return bool(self.target) and (self.format != "raw" or self.target.startswith(REMOTE))

    @property
    def readonly(self) -> bool:
        return self.access == "ro" or self.device == "cdrom"


class ConsoleConfig(Strict):
    """The guest's console, hvc0, and what becomes of its output."""

    history: Size = Field(
        1 << 20, ge=4096, le=1 << 28, description="bytes of output kept for viewers that come late"
    )
    input: Literal["single", "shared"] = Field(
        "single", description="one keyboard at a time, or one for each viewer"
    )
    log: AbsolutePath | None = Field(None, description="a file that gets the output as well")
    xen_log: AbsolutePath | None = Field(None, description="a file for the log of the Xen below the guest")
    log_max: Size = Field(10 << 20, ge=4096, le=1 << 40, description="bytes of a log file")
    log_keep: int = Field(4, ge=0, le=100, description="older log files, as FILE.1, that are kept")
    log_timestamps: bool = Field(False, description="begin each line of a log file with the time")
    log_safe: bool = Field(
        False, description="control characters are dots in log files, as terminals would obey them"
    )
    match: tuple[Regex, ...] = Field(
        (), max_length=16, description="patterns (RE2): when one comes, an event console.match tells"
    )


class ChannelConfig(Strict):
    """A further console of the guest, hvc1 and so on, which it knows by its name."""

    name: ChannelName
    number: int | None = Field(None, ge=1, le=9, description="of device/console/N; left out: a free one")
    history: Size = Field(1 << 18, ge=4096, le=1 << 28, description="bytes of output that are kept")
    input: Literal["single", "shared"] = Field(
        "single", description="one keyboard at a time, or one for each viewer"
    )
    log: AbsolutePath | None = Field(None, description="a file that gets the output as well")


Who = Annotated[
    str, Field(pattern=_WHO, max_length=64, description="user:alice or group:ops, by name or number")
]


class AccessConfig(Strict):
    """Who may do what, beside root and the daemon's own user. Empty, the sockets' file modes decide.

    It is the daemon's: it counts in the file that the daemon was started with.
    """

    viewer: tuple[Who, ...] = Field((), max_length=64, description="may look")
    operator: tuple[Who, ...] = Field(
        (), max_length=64, description="may steer the guest, with what files the daemon may use"
    )
    admin: tuple[Who, ...] = Field((), max_length=64, description="may do everything")


class ReadyConfig(Strict):
    """When the guest counts as up: for guest.wait, /readyz and, if it is said, for systemd."""

    when: str = Field(
        "devices",
        pattern=_READY,
        max_length=256,
        description="a phase of the boot, console:TEXT or xenstore:PATH (relative: below the guest's home)",
    )


class MetricsConfig(Strict):
    """What /metrics of http.sock tells."""

    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict, max_length=16, description='put to each of its numbers, as tenant = "blue"'
    )


class GuestConfig(Strict):
    """A guest definition. Memory in MiB, as xl."""

    name: Name = Field("guest", description="the guest's name; left out in a file: the file's")
    type: Literal["pv", "pvh"] = Field(
        "pv", description="pv runs a PV kernel in Xen's shim; pvh starts a kernel with a PVH entry by itself"
    )
    accel: Literal["auto", "kvm-xen", "kvm"] = Field(
        "auto", description="kvm-xen uses KVM's own Xen support, kvm needs none; auto takes the first it can"
    )
    xen_version: str = Field("4.17", pattern=_XEN_VERSION, description="the Xen that we say we are")
    memory: int = Field(
        512, ge=MEMORY_MIN_MIB, le=MEMORY_MAX_MIB, description="MiB of RAM, the shim's included"
    )
    vcpus: int = Field(1, ge=1, le=VCPUS_MAX, description="virtual CPUs, each a package with one core")
    kernel: str = Field(
        pattern=_KERNEL,
        max_length=4096,
        description="the kernel, as it lies in /boot; pvgrub starts the one that the disk's GRUB menu names",
    )
    ramdisk: AbsolutePath | None = Field(None, description="its initrd; not with pvgrub")
    cmdline: str = Field("", max_length=1000, description="the kernel's command line")
    shim: ShimConfig = Field(default_factory=lambda: ShimConfig.model_validate({}))
    disk: tuple[DiskConfig, ...] = Field((), max_length=MAX_DISKS)
    console: ConsoleConfig = Field(default_factory=lambda: ConsoleConfig.model_validate({}))
    channel: tuple[ChannelConfig, ...] = Field((), max_length=9)
    ready: ReadyConfig = Field(default_factory=lambda: ReadyConfig.model_validate({}))
    access: AccessConfig = Field(default_factory=lambda: AccessConfig.model_validate({}))
    metrics: MetricsConfig = Field(default_factory=lambda: MetricsConfig.model_validate({}))
    on_poweroff: Policy = Field("destroy", description="when the guest has switched itself off")
    on_reboot: Policy = Field("restart", description="when it has asked for a reboot")
    on_crash: Policy = Field("preserve", description="when it has crashed")
    on_watchdog: Policy = Field("restart", description="when the guest's Xen watchdog was not fed")

    @model_validator(mode="after")
    def _one_log_per_file(self) -> GuestConfig:
        logs = [self.console.log, self.console.xen_log, *(channel.log for channel in self.channel)]
        paths = [path for path in logs if path is not None]
        if len(set(paths)) < len(paths):
            raise ValueError("two consoles have one log file")
        return self

    @field_validator("channel")
    @classmethod
    def _one_channel_per_name(cls, channels: tuple[ChannelConfig, ...]) -> tuple[ChannelConfig, ...]:
        numbers = [channel.number for channel in channels if channel.number]
        if len({channel.name for channel in channels}) < len(channels) or len(set(numbers)) < len(numbers):
            raise ValueError("two channels have one name, or one number")
        return channels

    @field_validator("disk")
    @classmethod
    def _one_disk_per_vdev(cls, disks: tuple[DiskConfig, ...]) -> tuple[DiskConfig, ...]:
        seen: set[str] = set()
        for disk in disks:
            if disk.vdev in seen:
                raise ValueError(f"two disks are called {disk.vdev}")
            seen.add(disk.vdev)
        return disks


def problems(fault: ValidationError) -> list[tuple[str, str]]:
    """pydantic's findings as (TOML path, message), as ``disk.0.access``."""
    return [
        (".".join(str(part) for part in error["loc"] if part != "[key]") or "(top)", words(error))
        for error in fault.errors(include_url=False, include_input=False)
    ]


def words(error: ErrorDetails) -> str:
    """One of pydantic's findings in an operator's words."""
    if error["type"] == "value_error":  # a validator's own words; pydantic puts some before them
        return str(error["ctx"]["error"])
    context = error.get("ctx", {})
    kind = context["pattern"] if error["type"] == "string_pattern_mismatch" else error["type"]
    if kind not in _WORDS:
        return error["msg"]
    # bounds of a number are told as people write them: 60, not 60.0
    whole = {
        key: int(value) for key, value in context.items() if isinstance(value, float) and value.is_integer()
    }
    return _WORDS[kind].format_map({**context, **whole})


def parse(data: dict[str, Any], source: str) -> GuestConfig:
    """Check ``data`` (from ``source``, for the message). Raises :class:`BadConfig` with every problem."""
    try:
        return GuestConfig.model_validate(data)
    except ValidationError as fault:
        found = problems(fault)
        lines = "; ".join(f"{loc}: {msg}" for loc, msg in found)
        raise BadConfig(f"cannot use {source}: {lines}. Mend these keys (xenpvd.toml).", found) from None


def load(path: Path) -> GuestConfig:
    """Read a guest's TOML file; the name defaults to the file's.

    Raises :class:`BadConfig` if it cannot be read or used.
    """
    try:
        if path.exists() and not path.is_file():  # reading a FIFO would wait for ever
            raise BadConfig(f"cannot use {path}: it is not a regular file.", [("(file)", "no regular file")])
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        why = f"cannot read {path}: {fault.strerror}. Check the path."
        raise BadConfig(why, [("(file)", f"cannot read it: {fault.strerror}")]) from None
    except (ValueError, RecursionError) as fault:  # not all of tomllib's are its own: digits, depth
        raise BadConfig(f"cannot use {path}: no valid TOML: {fault}.", [("(file)", str(fault))]) from None
    data.setdefault("name", path.stem)
    anchor(data, path.absolute().parent)
    return parse(data, str(path))
