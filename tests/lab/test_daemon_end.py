"""How a daemon with a real guest ends: asked, told, killed; and the next start."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from lab import guest as assets
from tests.lab.conftest import Daemon


def test_sigterm_shuts_the_guest_down_and_loses_nothing(daemon: Daemon, folder: Path) -> None:
    """P2."""
    daemon.start().at_the_shell()
    daemon.call("console.write", text="echo not-synced > /mnt/f\n")  # the guest's own shutdown has to save it
    daemon.wait("console:not-synced")
    daemon.sh("true")
    daemon.kill(signal.SIGTERM)
    assert assets.read_file(folder / "xvda.img", "/f") == b"not-synced\n"
    assert not (folder / "run/web1/rpc.sock").exists()


def test_sigkill_under_writes_then_the_same_name_and_image(daemon: Daemon, folder: Path) -> None:
    """P1."""
    daemon.start().at_the_shell()
    daemon.sh("echo flushed > /mnt/f; sync")
    daemon.call(
        "console.write",
        text="i=0; while :; do dd if=/dev/urandom of=/mnt/junk bs=64k count=32 conv=fsync 2>/dev/null; "
        "i=$((i+1)); echo round-$i-done; done\n",
    )
    daemon.wait("console:round-3-done")
    daemon.kill(signal.SIGKILL)
    assert (folder / "run/web1/rpc.sock").exists()  # stale
    assert "dead" in daemon.ctl("list").stdout

    daemon.start().at_the_shell()
    assert daemon.sh("cat /mnt/f") == "flushed"


def test_a_second_daemon_of_the_name_or_on_the_image_is_refused(daemon: Daemon, folder: Path) -> None:
    daemon.start()
    again = daemon.ctl("start", str(daemon.file))
    assert again.returncode == 1 and "web1 is running already" in again.stderr, again
    options = ["--config", str(daemon.file), "--run-dir", str(daemon.run_dir)]
    by_hand = subprocess.run(
        [sys.executable, "-m", "xenpvd", *options], capture_output=True, text=True, check=False
    )
    assert by_hand.returncode == 3 and f"runs already (pid {daemon.pid})" in by_hand.stderr
    other = folder / "web2.toml"
    other.write_text(daemon.file.read_text())
    second = daemon.ctl("start", str(other))
    assert second.returncode == 1 and "xvda.img: another program or guest uses it" in second.stderr
    assert daemon.call("guest.status")["state"] == "running"


def test_adding_and_removing_a_disk_leaves_nothing_behind(daemon: Daemon, folder: Path) -> None:
    daemon.start().at_the_shell()
    (folder / "b.img").write_bytes(bytes(1 << 20))
    process = Path(f"/proc/{daemon.pid}")

    def footprint() -> tuple[int, int, int]:
        nodes = daemon.call("xenstore.tree", path="/", depth=64)
        return (
            len(list((process / "fd").iterdir())),
            len(list((process / "task").iterdir())),
            len(nodes),
        )

    def cycle() -> None:
        daemon.call("drive.add", vdev="xvdb", target=str(folder / "b.img"), timeout=30)
        daemon.call("drive.remove", vdev="xvdb", timeout=30)

    cycle()
    before = footprint()
    for _ in range(3):
        cycle()
    assert footprint() == before
