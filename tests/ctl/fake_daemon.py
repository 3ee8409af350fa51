"""Stands in for ``python -P -m xenpvd --config FILE --name NAME --run-dir DIR …``, over the fake service.

FAKE_DAEMON in the environment says what it does: refuse, refuse-start, busy, silent, die, crash,
stubborn, else serve.
Typing "poweroff" on its console ends it, as a guest's end does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path


def notify(state: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), "\0" + os.environ["NOTIFY_SOCKET"][1:])


async def serve(how: str, name: str, path: Path, *, start: bool) -> int:
    from tests.fakes.service import FakeService
    from xenpvd.errors import HostError
    from xenpvd.rpc.server import RpcServer
    from xenpvd.views import Runstate

    service = FakeService(name)
    server = RpcServer(service, path)
    await server.start()
    over = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, over.set)
    service.console.print(b"Linux version 6.1\r\nlogin: ")
    if not start:
        service.state = Runstate.DEFINED
    if how == "refuse-start":
        service.faults["guest_start"] = HostError("out of memory", 12, "")
    if how == "die":
        service.guest_wait = lambda *_: (print("out of luck"), os._exit(1))  # type: ignore[method-assign,assignment]
    if how == "crash":
        service.state = Runstate.CRASHED
        service.events.publish(
            "guest.crash", reason="crash", detail="BUG", xen_tail="(XEN) Domain 0 crashed\x1b[2J"
        )
    notify("READY=1")

    async def ended() -> None:
        await service.console.wait_typed(b"poweroff")
        service.console.print(b"reboot: Power down\r\n")

    async def stopped() -> None:
        async for event in service.events.subscribe(["guest.state"])[0]:
            if event.data["to"] is Runstate.STOPPED:
                return

    waits = [asyncio.create_task(coro) for coro in (over.wait(), ended(), stopped(), service.quitting.wait())]  # noqa: TID251
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    print("verbs done:", *service.done, flush=True)
    service.console.close()
    await server.stop()
    return 0


def main() -> int:
    options = dict(zip(sys.argv[4:10:2], sys.argv[5:10:2], strict=True))
    print("options:", *sys.argv[10:], flush=True)
    how = os.environ.get("FAKE_DAEMON", "")
    path = Path(options["--run-dir"]) / options["--name"] / "rpc.sock"
    print("config:", Path(options["--config"]).read_text(), flush=True)
    if how == "refuse":
        print("xenpvd: cannot use it: memory: too small. Mend these keys.", file=sys.stderr)
        return 2
    if how == "busy":
        print("xenpvd: a daemon of that name runs already", file=sys.stderr)
        return 3
    if how == "silent":
        signal.pause()
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        notify("READY=1")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                signal.pause()
    return asyncio.run(serve(how, options["--name"], path, start="--no-start" not in sys.argv))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
