"""Follow a guest: what it prints (stdout), and what happens to it (stderr), also over restarts of its daemon.

python follow.py web1
"""

import asyncio
import sys

from xenpvd.client import EventsLost, Guest, connect
from xenpvd.errors import XenpvdError


def note(text: str) -> None:
    print(f"-- {text}", file=sys.stderr, flush=True)


async def follow_console(guest: Guest) -> None:
    async for chunk in guest.console("0"):
        if chunk.lost is None:
            note("another daemon: the recording begins anew")
        elif chunk.lost:
            note(f"{chunk.lost} bytes are missing here")
        sys.stdout.buffer.write(chunk.data)
        sys.stdout.buffer.flush()


async def follow_events(guest: Guest) -> None:
    async for event in guest.events("guest.*", "drive.*", "console.match"):
        if isinstance(event, EventsLost):
            note(f"events are missing here ({event.why})")
        else:
            note(f"{event.name} {event.data}")


async def main(name: str) -> None:
    async with connect(name) as guest, asyncio.TaskGroup() as group:
        note(f"{guest.hello['guest']} is {guest.hello['state']}")
        group.create_task(follow_console(guest))
        group.create_task(follow_events(guest))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: follow.py GUEST")
    why = ""
    try:
        asyncio.run(main(sys.argv[1]))
    except* KeyboardInterrupt:
        pass
    except* XenpvdError as faults:
        why = "\n".join(str(fault) for fault in faults.exceptions)
    sys.exit(why or 0)
