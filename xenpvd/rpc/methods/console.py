"""The guest's consoles: look, type, wait, attach, and who else is there."""

from __future__ import annotations

from xenpvd.access import covers
from xenpvd.errors import Busy, Unsupported
from xenpvd.rpc import models, results
from xenpvd.rpc.console import TYPIST
from xenpvd.rpc.registry import Call, method
from xenpvd.views import ChannelAdded, ConsoleInfo, ConsoleViewerInfo


@method("console.list", "viewer")
async def console_list(call: Call, params: models.NoParams) -> list[ConsoleInfo]:
    """The consoles: "0" is the guest's hvc0, "xen" the log of the Xen below it, others are its channels."""
    return call.service.consoles.listing()


@method("console.read", "viewer")
async def console_read(call: Call, params: models.ConsoleReadParams) -> results.ConsoleData:
    """A piece of what a console has printed."""
    chunk = call.service.consoles.read(params.console, params.since, params.ago, params.max)
    return results.ConsoleData(
        start=chunk.start, end=chunk.end, lost=chunk.lost, **results.octets(chunk.data)
    )


@method("console.write", "operator", wait=True)
async def console_write(call: Call, params: models.ConsoleWriteParams) -> results.Written:
    """Type on the guest's console; waits while the guest does not read what was typed before.

    When the time is up it fails with TIMEOUT, whose ``written`` is how many bytes the guest was given: the
    rest is not typed, as it is not if the client leaves meanwhile.
    """
    written = await call.service.consoles.write(params.console, params.data(), params.timeout)
    return results.Written(written=written)


@method("console.wait", "viewer", wait=True)
async def console_wait(call: Call, params: models.ConsoleWaitParams) -> results.ConsoleFound:
    """Wait for a pattern, in what is kept from ``since`` on or in what comes; answers with the first match.

    RE2's syntax; ^ and $ are those of lines, whose ends are CR LF as the guest's terminal makes them. A match
    of up to 4096 bytes is found whole.
    """
    found = await call.service.consoles.wait(
        params.console, params.regex, params.since, params.timeout, covers(call.client.role, TYPIST)
    )
    return results.ConsoleFound(
        start=found.start,
        end=found.end,
        groups=[None if group is None else group.decode("utf-8", "replace") for group in found.groups],
        **results.octets(found.text),
    )


@method("console.attach", "viewer")
async def console_attach(call: Call, params: models.ConsoleAttachParams) -> results.Attached:
    """Make this connection a console: after the reply it is raw bytes both ways, until it ends.

    The request must be alone: a single one with an id, no other call under way and no events subscribed. Send
    its newline together with it, or none: what follows is typed. To type takes the role operator.
    """
    if params.mode != "ro":
        call.need(TYPIST, f"attach with mode {params.mode}")
    stream = call.client.stream
    if not stream.raw:
        place = f"/console/{params.console}"
        why = f"cannot attach on this connection: it takes messages only. Use the WebSocket {place}."
        raise Unsupported(why, feature="raw stream", hint=place)
    if not call.alone:
        raise Busy(
            "cannot attach on this connection: it has other work (a batch, calls under way or a "
            "subscription). Open one for the console.",
            by="this connection",
        )
    viewer = call.service.consoles.attach(
        params.console,
        params.mode,
        params.since,
        params.ago,
        call.client.who,
        may_type=covers(call.client.role, TYPIST),
    )
    stream.become(viewer)
    return results.Attached(mode=viewer.mode, offset=viewer.offset, viewer=viewer.number)


@method("console.viewers", "viewer")
async def console_viewers(call: Call, params: models.NoParams) -> list[ConsoleViewerInfo]:
    """Who is attached to which console."""
    return call.service.consoles.viewers()


@method("console.kick", "operator")
async def console_kick(call: Call, params: models.ConsoleViewerParams) -> None:
    """End a viewer."""
    call.service.consoles.kick(params.viewer, call.client.who)


@method("console.steal", "operator")
async def console_steal(call: Call, params: models.ConsoleViewerParams) -> None:
    """Give a viewer the keyboard, and take it from who has it. The viewer must be one who may type."""
    call.service.consoles.steal(params.viewer)


@method("console.clear", "operator")
async def console_clear(call: Call, params: models.ConsoleParams) -> None:
    """Forget what a console has printed so far; offsets go on. A log file gets it first."""
    await call.service.consoles.clear(params.console)


@method("channel.add", "operator")
async def channel_add(call: Call, params: models.ChannelAddParams) -> ChannelAdded:
    """Give the running guest one more console, hvc1 and so on. It is attached to by its name.

    The very same channel once more is no fault (``changed`` is false); another one of that name is EXISTS.
    """
    return await call.service.channel_add(params.channel(), params.wait, params.timeout)


@method("channel.remove", "operator")
async def channel_remove(call: Call, params: models.ChannelRemoveParams) -> results.Removed:
    """Take a channel from the guest; answers when the guest has let go of it. Its recording ends."""
    removed = await call.service.channel_remove(params.name, params.force, params.missing_ok, params.timeout)
    return results.Removed(removed=removed)
