"""``python3 -m lab.setup``: bring what the demo and the tests need onto this machine.

Done again, it is quick. It runs before the venv exists, so it uses the standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys

from lab import kvm, packages
from lab.paths import CHECKOUT
from lab.progress import LabError, step

VENV = CHECKOUT / ".venv"
PYTHON = VENV / "bin" / "python"


def venv() -> None:
    """Make the venv, or bring it up to date with pyproject.toml."""
    pyproject = (CHECKOUT / "pyproject.toml").read_bytes()
    stamp = VENV / "xenpvd-stamp"
    if not _usable():
        stamp.unlink(missing_ok=True)
        with step("make", f".venv with Python {sys.version.split()[0]}"):
            _run("make .venv", sys.executable, "-m", "venv", "--clear", str(VENV))
    version = hashlib.sha256(pyproject).hexdigest()
    if stamp.exists() and stamp.read_text() == version:
        return
    with step("get", "Python packages into .venv"):
        words = ("-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[dev]")
        _run("install Python packages", str(PYTHON), *words)
    stamp.write_text(version)


def native() -> None:
    """Compile the fast data plane, if its source is another one now."""
    _run("compile native.c", str(PYTHON), "-m", "xenpvd.backends.blkif.build")


def bytecode() -> None:
    """The lab hosts' emulated CPU would take ten times as long for it, at a first start."""
    _run("compile xenpvd", str(PYTHON), "-m", "compileall", "-q", "xenpvd")


def _usable() -> bool:
    """A venv dies when its Python goes, as in an upgrade of the machine."""
    probe = "import pip, sys; sys.exit(sys.version_info < (3, 11))"
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", probe], capture_output=True).returncode == 0


def _run(what: str, *argv: str) -> None:
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-24:])
        raise LabError(f"cannot {what}:\n{tail}\nCheck the network, then try again.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab.setup", description=__doc__)
    parser.add_argument("--refresh", action="store_true", help="look for newer kernels and shims")
    args = parser.parse_args()
    try:
        lab = bool(kvm.unfit())
        python = () if importlib.util.find_spec("ensurepip") else ("python3-venv",)
        packages.install((*python, *packages.HOST_PACKAGES, *(packages.LAB_PACKAGES if lab else ())))
        venv()
        native()
        bytecode()
        hosts = tuple(packages.LAB_KERNELS.values()) if lab else ()
        packages.fetch((*packages.GUEST_ASSETS, *hosts), args.refresh)
        if subprocess.run([PYTHON, "-m", "lab.guest"], cwd=CHECKOUT).returncode:
            return 1
    except LabError as fault:
        print(f"setup: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
