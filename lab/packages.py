"""What Debian's archive gives us: host packages installed by apt, and others only unpacked into the cache.

Unpacking goes through a private apt root per suite (own sources list, own state, own package lists), so it
needs no root and leaves the machine's own apt configuration alone.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lab import modules
from lab.paths import asset, cache, locked, replacing
from lab.progress import LabError, step

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Asset:
    """Files of binary packages, kept under their path in them, in the cache's folder ``name``."""

    name: str
    suite: str
    packages: tuple[str, ...]
    keep: tuple[str, ...]
    """fnmatch patterns of the paths to keep, without the leading slash"""
    modules: tuple[str, ...] = ()
    """of a kernel: the modules to keep with all that they need, plain, in the order of their loading"""

    @property
    def stamp(self) -> str:
        """What else than the packages' versions decides what is in the folder."""
        what = (self.keep, self.modules, *self.packages[1:])
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


KERNEL = ("boot/vmlinuz-*", "boot/config-*")
GUEST_MODULES = ("xen_blkfront", "xen_wdt")
HOST_MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_net", "kvm_amd", "loop", "tun"),
    *("crc32c_generic", "ext4"),  # the former is asked for by name only
)

GUEST_KERNELS = {
    "6.1": Asset("guest-kernel-6.1", "bookworm", ("linux-image-cloud-amd64",), KERNEL, GUEST_MODULES),
    "6.12": Asset("guest-kernel-6.12", "trixie", ("linux-image-cloud-amd64",), KERNEL, GUEST_MODULES),
}
#: 4.14 is the last of the archive's that calls by the hypercall page.
SHIMS = {
    version: Asset(
        f"xen-shim-{version}", suite, (f"xen-utils-{version}",), (f"usr/lib/xen-{version}/boot/xen-shim",)
    )
    for version, suite in (("4.14", "bullseye"), ("4.17", "bookworm"), ("4.20", "trixie"))
}
GRUB = Asset("grub-xen", "bookworm", ("grub-xen-host",), ("usr/lib/grub-xen/*",))
#: Xen's own xenstore tools and xenstored, with the libraries that these need.
XEN_TOOLS = Asset(
    "xen-tools",
    "bookworm",
    (
        "xen-utils-4.17",
        "xenstore-utils",
        "libxencall1",
        "libxendevicemodel1",
        "libxenevtchn1",
        "libxenforeignmemory1",
        "libxengnttab1",
        "libxenmisc4.17",
        "libxenstore4",
        "libxentoolcore1",
        "libxentoollog1",
    ),
    (
        "usr/lib/xen-4.17/bin/xenstore[-d]*",
        "usr/bin/xenstore",  # the others are links to it
        "usr/bin/xenstore-chmod",
        "usr/bin/xenstore-[!c]*",  # not -control: a wrapper
        "usr/lib/x86_64-linux-gnu/libxen[!lv]*.so.*",  # not -light, -vchan
    ),
)
#: KVM hosts' kernels: Debian's first with CONFIG_KVM_XEN is 6.12, that of Debian 12 has none.
LAB_KERNELS = {
    "xen": Asset("lab-kernel-xen", "trixie", ("linux-image-amd64",), KERNEL, HOST_MODULES),
    "plain": Asset("lab-kernel-plain", "bookworm", ("linux-image-amd64",), KERNEL, HOST_MODULES),
}

#: The benchmarks' peer, where the machine's own cannot play Xen; its libraries are those of LAB_PACKAGES.
QEMU = Asset(
    "qemu",
    "bookworm-backports",
    ("qemu-system-x86", "qemu-system-data", "seabios"),
    ("usr/bin/qemu-system-x86_64", "usr/share/qemu/*.bin", "usr/share/seabios/*"),
)

GUEST_ASSETS = (*GUEST_KERNELS.values(), *SHIMS.values(), GRUB, XEN_TOOLS)
HOST_PACKAGES = (
    "busybox-static",
    "debian-archive-keyring",
    "e2fsprogs",
    "gcc",
    "libatomic1",
    "libc6-dev",
    "mandoc",
)
LAB_PACKAGES = ("qemu-system-x86",)
#: for tests only, which say what is missing where it is not there
TEST_PACKAGES = ("chromium", "systemd", "qemu-utils", "qemu-system-common")


def run_quietly(argv: Sequence[str | Path], what: str, cwd: Path | None = None) -> str:
    """Run a quiet command, give its stdout. Raises LabError with the last lines that it wrote."""
    environ = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise LabError(f"cannot {what}: there is no {argv[0]} here. The lab needs Debian 12 or 13.") from None
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-6:])
        raise LabError(
            f"cannot {what}: {Path(argv[0]).name} ended with status {done.returncode}:\n{tail}\n"
            "Check the network and the archive (XENPVD_MIRROR=URL names another one), then try again."
        )
    return done.stdout


# --- packages that the machine itself needs ------------------------------------------------------------


def missing(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are not installed."""
    if shutil.which("dpkg-query") is None:
        raise LabError("cannot look for packages: no dpkg here. The lab needs Debian 12 or 13.")
    query = ["dpkg-query", "-W", "-f", "${binary:Package} ${db:Status-Status}\n", *names]
    found = subprocess.run(query, capture_output=True, text=True).stdout
    installed = {line.split()[0].split(":")[0] for line in found.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def _as_root(argv: Sequence[str]) -> list[str]:
    if os.geteuid() == 0:
        return list(argv)
    if shutil.which("sudo") is None:
        raise LabError(f"cannot install packages: not root, and no sudo here. Run as root: {' '.join(argv)}")
    sys.stderr.flush()
    if subprocess.run(["sudo", "-v"]).returncode:  # asks for the password, outside of any captured output
        raise LabError(f"cannot install packages: sudo said no. Run as root: {' '.join(argv)}")
    return ["sudo", "DEBIAN_FRONTEND=noninteractive", *argv]


def update_lists() -> None:
    """``apt-get update`` for the machine's own sources."""
    argv = _as_root(["apt-get", "-qq", "update"])
    with step("apt", "update"):
        run_quietly(argv, "update the package lists")


def install(names: Sequence[str]) -> None:
    """Install those of ``names`` that are missing; takes no network if none is."""
    wanted = missing(names)
    if not wanted:
        return
    if subprocess.run(["apt-cache", "show", *wanted], capture_output=True).returncode:
        update_lists()
    argv = _as_root(["apt-get", "-qq", "-y", "-oDPkg::Lock::Timeout=300", "--no-install-recommends"])
    argv += ["install", *wanted]
    what = f"install {' '.join(wanted)}"
    try:
        with step("apt", what):
            run_quietly(argv, what)
    except LabError:  # the lists may be older than the archive: a renewed look is worth one try
        update_lists()
        with step("apt", what):
            run_quietly(argv, what)


# --- packages that are only unpacked -------------------------------------------------------------------


def archive_url() -> str:
    """The archive's base URL, as the machine's own apt knows it. $XENPVD_MIRROR overrides."""
    if own := os.environ.get("XENPVD_MIRROR"):
        return own.rstrip("/")
    for attempt in (0, 1):
        if found := _debian_urls():
            return found[0]
        if attempt == 0:
            update_lists()  # a bare machine: labels are in the lists
    raise LabError(
        "cannot find Debian's archive: this machine's apt has no http(s) source of label Debian. "
        "Set XENPVD_MIRROR to the URL of a Debian mirror."
    )


def _debian_urls() -> list[str]:
    argv = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    rows = [line.split() for line in run_quietly(argv, "read the machine's apt sources").splitlines()]
    return [row[1].rstrip("/") for row in rows if len(row) == 2 and row[0] == "Debian" and ":" in row[1]]


@dataclass(frozen=True)
class Package:
    """One version of a binary package in the archive; ``size`` is that of the download, in bytes."""

    name: str
    version: str
    size: int


class Suite:
    """One suite of the archive behind a private apt root below the cache: its packages, or its sources."""

    def __init__(self, name: str, kind: str = "deb") -> None:
        self.name = name
        self.kind = kind
        self.root = cache() / "apt" / (name if kind == "deb" else f"{name}-sources")
        self._fresh = False

    def _argv(self, tool: str, *words: str) -> list[str]:
        options = {
            "Dir::Etc::sourcelist": self.root / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": self.root,
            "Dir::State::status": self.root / "status",
            "Dir::State::lists": self.root / "lists",
            "Dir::Cache": self.root / "cache",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",  # _apt cannot write into a user's cache
            "APT::Default-Release": "",  # the machine's own may not be here
            "Acquire::Languages": "none",
            "Acquire::PDiffs": "false",
            "Acquire::Retries": "3",
        }
        return [tool, *(f"-o{key}={value}" for key, value in options.items()), *words]

    def refresh(self) -> None:
        """Fetch the suite's package lists, once in this process."""
        if self._fresh:
            return
        if not KEYRING.exists():
            raise LabError(f"cannot trust the archive: no {KEYRING}. Install debian-archive-keyring.")
        url = archive_url()
        with step("get", f"package lists of {self.name}"):
            for folder in ("lists/partial", "cache/archives/partial"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            (self.root / "status").touch()
            source = f"{self.kind} [arch=amd64 signed-by={KEYRING}] {url} {self.name} main\n"
            (self.root / "sources.list").write_text(source)
            strict = "-oAPT::Update::Error-Mode=any"
            run_quietly(
                self._argv("apt-get", strict, "-q", "update"), f"read the package lists of {self.name}"
            )
        self._fresh = True

    def resolve(self, package: str) -> Package:
        """The newest; for a kernel's meta package, the image that it depends on. Raises LabError."""
        depends = run_quietly(self._argv("apt-cache", "depends", package), f"find {package} in {self.name}")
        if image := re.search(r"^ *Depends: (linux-image-\d\S*)$", depends, re.MULTILINE):
            package = image[1]
        shown = run_quietly(self._argv("apt-cache", "--no-all-versions", "show", package), f"find {package}")
        fields = dict(re.findall(r"^(Version|Size): (\S+)$", shown, re.MULTILINE))
        if "Version" not in fields:
            raise LabError(f"cannot find {package} in {self.name}: the archive has none. Report this.")
        return Package(package, fields["Version"], int(fields.get("Size", 0)))

    def source(self, name: str, into: Path) -> Path:
        """Download the source package ``name`` into ``into``; its tarball, as its authors released it."""
        run_quietly(
            self._argv("apt-get", "-q", "--download-only", "source", name), f"download {name}'s source", into
        )
        [tarball] = into.glob(f"{name}_*.orig.tar.*[!c]")  # not .asc, a signature
        return tarball

    def unpack(self, package: Package, keep: Sequence[str], into: Path) -> None:
        """Download one package into ``into``, leave only the files that match ``keep`` there."""
        argv = self._argv("apt-get", "-q", "download", f"{package.name}={package.version}")
        run_quietly(argv, f"download {package.name}", into)
        [deb] = into.glob("*.deb")
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as dpkg:
            assert dpkg.stdout is not None
            with tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    wanted = any(fnmatch.fnmatchcase(str(path), rule) for rule in keep)
                    if not wanted or ".." in path.parts or path.is_absolute():
                        continue
                    target = into / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if member.issym():
                        target.symlink_to(member.linkname)
                    elif member.islnk():
                        target.hardlink_to(into / member.linkname)
                    elif (content := tar.extractfile(member)) is not None:
                        with target.open("wb") as file:
                            shutil.copyfileobj(content, file)
                        target.chmod(member.mode & 0o777)
        deb.unlink()
        if dpkg.returncode:
            raise LabError(
                f"cannot unpack {package.name}: dpkg-deb ended with status {dpkg.returncode}. Try again."
            )


def fetch(assets: Sequence[Asset], refresh: bool = False) -> None:
    """Bring ``assets`` into the cache. Those there stay as they are, unless ``refresh`` finds newer."""
    if platform.machine() != "x86_64":
        raise LabError(f"cannot fetch kernels: xenpvd is for x86_64, this machine is {platform.machine()}.")
    suites = {item.suite: Suite(item.suite) for item in assets}
    with locked(cache() / "assets.lock"):
        for item in assets:
            here = installed_version(item)
            if here and not refresh:
                continue
            suite = suites[item.suite]
            suite.refresh()
            found = [suite.resolve(package) for package in item.packages]
            version = ", ".join(f"{package.name} {package.version}" for package in found)
            if here == version:
                continue
            size = sum(package.size for package in found)
            what = f"{item.name} {found[0].version} ({size / 1e6:.0f} MB)"
            with step("get", what), replacing(asset(item.name)) as folder:
                keep = (*item.keep, *modules.FILES) if item.modules else item.keep
                for package in found:
                    suite.unpack(package, keep, folder)
                if item.modules:
                    modules.take(folder, item.modules)
                (folder / "version").write_text(f"{version}\n{item.stamp}\n")


def installed_version(item: Asset) -> str | None:
    """``package version`` of what the cache holds of it (more of them after commas), None if it is not there,
    or not all that is kept."""
    try:
        version, _, stamp = asset(item.name, "version").read_text().strip().partition("\n")
    except FileNotFoundError:
        return None
    return version if stamp == item.stamp else None


def only(item: Asset, pattern: str) -> Path:
    """The one file of an asset that matches ``pattern`` (glob). Raises LabError if it is not there."""
    found = sorted(asset(item.name).glob(pattern))
    if len(found) != 1:
        raise LabError(f"cannot find {pattern} in {asset(item.name)}. Run make setup.")
    return found[0]


def xen_tool(name: str) -> Path:
    """One of Xen's xenstore tools, or its xenstored. Raises LabError if it is not there."""
    return only(XEN_TOOLS, f"usr/**/bin/{name}")


def xen_environment(socket: Path) -> dict[str, str]:
    """What Xen's tools need to run from the cache, and to ask the xenstored at ``socket``."""
    libraries = asset(XEN_TOOLS.name, "usr/lib/x86_64-linux-gnu")
    return os.environ | {"LD_LIBRARY_PATH": str(libraries), "XENSTORED_PATH": str(socket)}
