"""The wheel: what is in it, and that it works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from xenpvd.backends.blkif import build

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_what_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {
        "xenpvd"
    }  # no lab, no tests
    assert {"xenpvd/py.typed", "xenpvd/schemas/openrpc.json", "xenpvd/daemon.py"} <= set(names)
    assert {f"xenpvd/rpc/page/{name}" for name in ("index.html", "console.js", "xterm.mjs")} <= set(names)
    pages = {name.partition(".data/data/share/man/")[2] for name in names if ".data/" in name}
    assert pages == {f"man{page.suffix[1:]}/{page.name}" for page in (ROOT / "docs" / "man").iterdir()}
    units = {path.relative_to(ROOT).as_posix() for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("xenpvd/systemd/")} == {
        f"xenpvd/{name}" for name in units
    }
    native = [name for name in names if name.startswith("xenpvd/backends/blkif/native-")]
    assert [f"xenpvd/backends/blkif/{build.library().name}"] == native
    assert "any.whl" not in wheel.name, "a wheel with a library is this machine's"
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "xenpvd = xenpvd.__main__:main" in text and "xenpvctl = xenpvd.ctl.cli:main" in text
    assert "xenpvd-gateway = xenpvd.gateway.__main__:main" in text
    assert {f"xenpvd/gateway/page/{name}" for name in ("guests.html", "guests.js", "admit.mjs")} <= set(names)


def test_the_commands_of_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """Laid beside nothing but its dependencies; this environment's stand in for a download of them."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *argv],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )

    where = run("-c", "import xenpvd; print(xenpvd.__file__)")
    assert where.stdout.startswith(str(tmp_path))
    doctor = run("-m", "xenpvd.ctl.cli", "doctor")
    assert doctor.returncode in (0, 1) and "/dev/kvm" in doctor.stdout + doctor.stderr, doctor
    assert "Traceback" not in doctor.stderr
    assert run("-m", "xenpvd", "--version").stdout.strip() == "0.1.0"
