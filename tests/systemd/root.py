"""A real systemd, as the first process of namespaces of its own. It and its units see this machine's files,
but what they write to /etc, /var, /run, /tmp and /opt is theirs, and nothing outlives it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
#: Of Debian's own units those that a journal needs; the others would work on the machine itself.
UNITS = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
TARGETS = ("sysinit", "basic", "multi-user", "shutdown", "sockets", "remote-fs", "umount", "final")
#: in an emulated machine each run of systemctl takes a while
LIMIT = 120
INSIDE = Path("/run/place")
#: a Python that is not the system's brings its own library, and looks for it where it was built for
LIBRARIES = "/opt/xenpvd/python/lib"

XENPVCTL = "/opt/xenpvd/bin/xenpvctl"
#: as root does it; the folder of the images is that of docs/systemd.md
PREPARE = f"""
set -e
{XENPVCTL} install-units
systemd-sysusers
mkdir -p /etc/xenpvd /etc/systemd/system/xenpvd@.service.d
printf '[Service]\nEnvironment=LD_LIBRARY_PATH={LIBRARIES}\nReadWritePaths=/srv/guests\n' \
    > /etc/systemd/system/xenpvd@.service.d/test.conf
mkdir -p /run/srv/guests
mount --bind /run/srv /srv
systemctl daemon-reload
"""

#: $1 is a folder in memory, $2 and $3 are where this Python and its packages are; becomes systemd.
BEGIN = r"""
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for folder in etc var; do
    mkdir -p "$1/$folder" "$1/$folder.work"
    mount -t overlay -o "lowerdir=/$folder,upperdir=$1/$folder,workdir=$1/$folder.work" overlay "/$folder"
done
mount --rbind "$2" "$1/opt/xenpvd/python"
mount --rbind "$3" "$1/opt/xenpvd/packages"
mkdir -p /opt
mount --rbind "$1/opt" /opt
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir /run/xenpvd-units /run/lock /run/place
mount --rbind "$1" /run/place
mount -t tmpfs -o mode=1777 tmpfs /dev/shm  # of a service's user, what is in there is deleted
cp /run/place/units/* /run/xenpvd-units
mkdir -p /run/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nReadKMsg=no\n' > /run/systemd/journald.conf.d/test.conf
mount --make-rshared /  # as systemd does where it is in no container: LoadCredential= mounts from aside
exec env -i container=xenpvd-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_UNIT_PATH=/run/xenpvd-units:/etc/systemd/system \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal-or-kmsg --show-status=no
"""


def missing() -> str:
    """Why there can be none here, or an empty string."""
    if not Path("/lib/systemd/systemd").exists():
        return "there is no systemd: apt install systemd"
    if os.geteuid() != 0:
        return "a systemd of our own needs root"
    if _cgroup() is None:
        return "there is no cgroup2 file system here"
    return ""


def _cgroup() -> Path | None:
    """This process's own in the cgroup2 hierarchy."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    for mount in map(Path, ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")):
        if own is not None and (mount / "cgroup.controllers").exists():
            return mount / own.lstrip("/")
    return None


class Systemd:
    """``place`` is a folder in memory; it is seen in there as ``INSIDE``."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="xenpvd-systemd-", dir="/dev/shm"))
        self.place.chmod(0o755)
        self._install()
        self._lay_units()
        cgroup = _cgroup()
        assert cgroup is not None
        self._group = cgroup / self.place.name
        self._group.mkdir()
        enter = 'echo $$ > "$0/cgroup.procs" && exec unshare -m -p -C -i -u -n --fork --kill-child sh -c "$@"'
        argv = ["sh", "-c", enter, self._group, BEGIN, "sh", self.place]
        with (self.place / "log").open("wb") as log:
            self._unshare = subprocess.Popen(
                [*argv, sys.base_prefix, sysconfig.get_path("purelib")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._pid = self._await_systemd()
            self.until("active", "is-active", "multi-user.target")
        except BaseException:
            self.close()
            raise

    def _install(self) -> None:
        """xenpvd in /opt, as pip would put it there, and with this Python: a service sees no home."""
        opt = self.place / "opt" / "xenpvd"
        for name in ("bin", "python", "packages"):
            (opt / name).mkdir(parents=True)
        shutil.copytree(CHECKOUT / "xenpvd", opt / "site" / "xenpvd")
        shutil.copytree(CHECKOUT / "systemd", opt / "site" / "xenpvd" / "systemd")
        for command, module in (
            ("xenpvd", "xenpvd.__main__"),
            ("xenpvctl", "xenpvd.ctl.cli"),
            ("xenpvd-gateway", "xenpvd.gateway.__main__"),
        ):
            script = opt / "bin" / command
            script.write_text(
                "#!/opt/xenpvd/python/bin/python3 -P\nimport sys\n"
                "sys.path[:0] = ['/opt/xenpvd/site', '/opt/xenpvd/packages']\n"
                f"from {module} import main\nmain()\n"
            )
            script.chmod(0o755)

    def _lay_units(self) -> None:
        units = self.place / "units"
        units.mkdir()
        for name in UNITS:
            if (found := Path("/lib/systemd/system") / name).exists():
                shutil.copy(found, units)
        for name in TARGETS:
            (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        with (units / "multi-user.target").open("a") as target:
            target.write(f"Wants={' '.join(UNITS)}\n")

    def _await_systemd(self) -> str:
        """The first process has become systemd: before that, the machine's own /run is in its place."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and self._unshare.poll() is None:
            for pid in children.read_text().split():
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    return pid
            time.sleep(0.05)
        raise AssertionError(f"no systemd came up:\n{self.log()}")

    def run(self, *argv: str | Path, status: int | None = 0) -> str:
        """Run a command in there; what it printed. ``status`` None: whatever it ends with."""
        done = subprocess.run(
            ["nsenter", "-a", "-t", self._pid, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": LIBRARIES, "LC_ALL": "C.UTF-8"},
        )
        said = done.stdout + done.stderr
        assert status is None or done.returncode == status, f"{argv}: {done.returncode}\n{said}{self.log()}"
        return said.strip()

    def ctl(self, *words: str, status: int | None = 0) -> str:
        return self.run("systemctl", "--no-pager", *words, status=status)

    def show(self, unit: str, prop: str) -> str:
        return self.ctl("show", "--value", "-p", prop, unit)

    def until(self, said: str, *words: str) -> None:
        """Ask systemctl until it says so: it has no way to wait for all of it."""
        end = time.monotonic() + LIMIT
        while (found := self.ctl(*words, status=None)) != said:
            assert time.monotonic() < end, f"{words}: {found}, not {said}\n{self.log()}"
            time.sleep(0.1)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def log(self) -> str:
        return (self.place / "log").read_text(errors="replace")

    def close(self) -> None:
        """Nothing is asked any more: the first process of a PID namespace takes all others along."""
        (self._group / "cgroup.kill").write_text("1")
        self._unshare.wait()
        end = time.monotonic() + LIMIT
        while "populated 1" in (self._group / "cgroup.events").read_text() and time.monotonic() < end:
            time.sleep(0.01)
        for folder in sorted(self._group.glob("**/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        shutil.rmtree(self.place, ignore_errors=True)
