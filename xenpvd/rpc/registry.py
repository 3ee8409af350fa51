"""Where each RPC method is declared once: its name, role, parameters, result and words."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar, get_type_hints

from pydantic import BaseModel, TypeAdapter

from xenpvd.access import Role, covers
from xenpvd.errors import PermissionRefused
from xenpvd.rpc.rights import Rights
from xenpvd.rpc.service import ConsoleViewer, Service

_T = TypeVar("_T")

#: A notification's method and params.
Note = tuple[str, BaseModel]


class Client(Protocol):
    """Who called: what a method may ask of it."""

    @property
    def who(self) -> str:
        """The peer, for people: ``uid 0, pid 4711``."""

    @property
    def role(self) -> Role: ...

    async def waiting(self, call: Call, run: Awaitable[_T]) -> _T:
        """Await ``run``; ``call`` is cancelled when the client leaves."""

    @property
    def stream(self) -> Stream:
        """Its connection, for what goes on after the reply. Raises ``Unsupported`` where nothing can."""


class Stream(Protocol):
    """What a method may do to a connection that outlasts its reply."""

    @property
    def raw(self) -> bool:
        """Whether it can :meth:`become` a console."""

    @property
    def feeds(self) -> Collection[str]:
        """The names of those that go on."""

    def feed(self, call: Call, name: str, notes: AsyncIterator[Note], close: Callable[[], None]) -> None:
        """Send ``notes`` behind the reply to ``call``, as they come, instead of any feed of that name before.

        ``close`` ends the iteration; it is called once, at the latest when the connection ends.
        """

    def end_feed(self, name: str) -> bool:
        """False if there was none."""

    def become(self, viewer: ConsoleViewer) -> None:
        """The connection ends to be JSON after this reply; its bytes are ``viewer``'s."""


@dataclass(frozen=True, slots=True)
class Call:
    """One message's context. ``alone``: a single request with an id, and nothing else going on. ``rights``:
    what came along with it; None where nothing can."""

    service: Service
    client: Client
    task: asyncio.Task[Any] | None
    alone: bool
    rights: Rights | None = None
    after_reply: list[Callable[[], None]] = field(default_factory=list)

    def need(self, role: Role, what: str) -> None:
        """Raises :class:`PermissionRefused` if the client's role is too small to ``what``."""
        check_role(self.client.role, role, what)


def check_role(role: Role, need: Role, what: str) -> None:
    """Raises :class:`PermissionRefused`."""
    if not covers(role, need):
        why = f"cannot {what}: you are {role} here, and that takes {need}. Ask the daemon's admin ([access])."
        raise PermissionRefused(why, need=need, role=role)


@dataclass(frozen=True)
class Method:
    """``wait``: it may wait for the guest and can be given up meanwhile, so it is cancelled when its client
    leaves; any other runs to its end."""

    name: str
    role: Role
    wait: bool
    run: Callable[[Call, Any], Awaitable[Any]]
    params: type[BaseModel]
    returns: Any
    summary: str
    description: str

    @cached_property
    def result(self) -> TypeAdapter[Any]:
        """Built when first asked for: a daemon starts sooner, and most methods are never called."""
        return TypeAdapter(self.returns)


METHODS: dict[str, Method] = {}

_Run = TypeVar("_Run", bound=Callable[[Call, Any], Awaitable[Any]])


def method(name: str, role: Role, wait: bool = False) -> Callable[[_Run], _Run]:
    """Declare ``async def run(call: Call, params: P) -> R``: P is a model, R is what pydantic can describe;
    the docstring's first line is the summary."""

    def declare(run: _Run) -> _Run:
        hints = get_type_hints(run)
        summary, _, description = (inspect.getdoc(run) or "").partition("\n")
        METHODS[name] = Method(
            name, role, wait, run, hints["params"], hints["return"], summary, description.strip()
        )
        return run

    return declare
