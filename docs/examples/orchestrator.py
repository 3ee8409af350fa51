"""Run a guest from its start to its end: a daemon of our own, one disk more, its console here, a shutdown.

    python orchestrator.py web1.toml data.img RUN_DIR      # until ^C or SIGTERM

Exit status: 0 if the guest shut down well when it was told to, else 1.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path

from xenpvd.client import ConnectionLost, Guest, Retry, Unreachable, connect
from xenpvd.errors import XenpvdError

DAEMON = [sys.executable, "-m", "xenpvd"]


def note(text: str) -> None:
    print(f"-- {text}", file=sys.stderr, flush=True)


async def show_console(guest: Guest) -> None:
    """Up to its last byte: a connection that is lost comes back, a daemon that has ended does not."""
    try:
        async for chunk in guest.console("0"):
            if chunk.lost:
                note(f"{chunk.lost} bytes are missing here")
            sys.stdout.buffer.write(chunk.data)
            sys.stdout.buffer.flush()
    except (ConnectionLost, Unreachable):
        note("the console has ended")


async def operate(guest: Guest, image: Path, stop: asyncio.Event) -> bool:
    await guest.guest_wait(for_="devices", timeout=120)
    disk = str(image.absolute())
    try:
        added = await guest.drive_add(vdev="xvdb", target=disk)
    except ConnectionLost:  # was it done? The very same disk once more is no fault
        added = await guest.drive_add(vdev="xvdb", target=disk)
    note(f"xvdb is {added['drive']['state']}, {added['drive']['size']} bytes")
    await stop.wait()
    done = await guest.guest_shutdown(timeout=60, then="destroy")
    note(f"{done['state']} after {done['stopped']} s")
    return not done["destroyed"]


async def too_early(daemon: Process) -> None:
    raise XenpvdError(f"the daemon has ended, status {await daemon.wait()}. It said why above.")


async def orchestrate(definition: Path, image: Path, run_dir: Path, stop: asyncio.Event) -> bool:
    name = definition.stem
    options = ["--config", str(definition), "--name", name, "--run-dir", str(run_dir)]
    # in a session of its own: ^C is for us, and we tell it
    daemon = await asyncio.create_subprocess_exec(*DAEMON, *options, start_new_session=True)
    try:
        async with asyncio.TaskGroup() as group:
            alive = group.create_task(too_early(daemon))
            async with connect(name, run_dir=run_dir, timeout=30, wait=120, retry=Retry(patience=1)) as guest:
                console = group.create_task(show_console(guest))
                good = await operate(guest, image, stop)
                alive.cancel()
                await console
        return await daemon.wait() == 0 and good
    finally:
        if daemon.returncode is None:
            daemon.terminate()
            await daemon.wait()


async def main(definition: str, image: str, run_dir: str) -> bool:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    return await orchestrate(Path(definition), Path(image), Path(run_dir), stop)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: orchestrator.py DEFINITION IMAGE RUN_DIR")
    why = "the guest did not end well"
    try:
        if asyncio.run(main(*sys.argv[1:4])):
            why = ""
    except* XenpvdError as faults:
        why = "\n".join(str(fault) for fault in faults.exceptions)
    sys.exit(why or 0)
