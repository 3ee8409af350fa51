"""What a verb says: JSON or text, faults and exit status."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import click

from xenpvd.ctl.client import INVALID_PARAMS, NoAnswer, RpcFault
from xenpvd.ctl.rundir import NoGuest
from xenpvd.ctl.words import spoken

OK, FAILED, USAGE, NO_GUEST, TIMEOUT = range(5)
#: As shells have it for a command that SIGINT ended
INTERRUPTED = 128 + signal.SIGINT

#: The API's code and reason for what is found out on this side, by exit status
CODES = {
    FAILED: (1000, "FAILED"),
    USAGE: (INVALID_PARAMS, "VALIDATION"),
    NO_GUEST: (1002, "NOT_FOUND"),
    TIMEOUT: (1005, "TIMEOUT"),
    INTERRUPTED: (1007, "CANCELLED"),
}

#: Of a context's meta: whether JSON is wanted; whether that was typed, be it to no avail; and the verb
_JSON, _TYPED, _VERB = "xenpvd.json", "xenpvd.typed", "xenpvd.verb"
_F = TypeVar("_F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """Ends the verb with ``message`` and ``exit_code``; with --json an error goes to stdout, too, whose
    ``code`` and ``reason`` are the API's, and whose ``data`` depend on the reason."""

    def __init__(
        self,
        message: str,
        exit_code: int = FAILED,
        *,
        code: int | None = None,
        reason: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(plain(message))
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable to click
        usual = CODES[exit_code]
        self.error = {
            "code": code or usual[0], "reason": reason or usual[1], "message": message, "data": data or {}
        }  # fmt: skip
        self.as_json = wants_json()

    def show(self, file: Any = None) -> None:
        if self.as_json:
            click.echo(json.dumps({"error": self.error}))
        click.echo(f"xenpvctl: {self.message}", err=True)


def failure_of(fault: Exception) -> Failure:
    """How a verb ends that met ``fault``."""
    if isinstance(fault, RpcFault):
        status = FAILED
        reason = str(fault.data.get("reason", "FAILED"))
        if reason == "TIMEOUT":
            status = TIMEOUT
        elif fault.code == INVALID_PARAMS:
            status = USAGE
        ctx = click.get_current_context(silent=True)
        message = spoken(fault, None if ctx is None else ctx.meta.get(_VERB))
        return Failure(message, status, code=fault.code, reason=reason, data=fault.data)
    if isinstance(fault, NoGuest):
        return Failure(str(fault), NO_GUEST, data={"kind": "guest", "name": fault.name})
    if isinstance(fault, PermissionError):
        return Failure(str(fault), code=1010, reason="PERMISSION")
    return Failure(str(fault))


class Verbs(click.Group):
    """A group whose verbs may let the client's faults go: they end in a message and the right status."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta.setdefault(_TYPED, "--json" in args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:  # >&-
                sys.stdout.flush()
            return result
        except (RpcFault, NoAnswer, NoGuest, PermissionError) as fault:
            raise failure_of(fault) from None
        except click.UsageError as fault:
            if ctx.parent is None and (wants_json() or ctx.meta[_TYPED]):
                click.echo(json.dumps({"error": Failure(fault.format_message(), USAGE).error}))
            raise
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except OSError as fault:
            if fault.errno == errno.EPIPE:  # who reads has seen enough
                raise
            # what stdout did not take would be tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise Failure(f"cannot go on: {fault.strerror or fault}. See where the output goes.") from None


def json_option(verb: _F) -> _F:
    """``--json``: seen by :func:`emit`, not by the verb."""

    def note(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[_VERB] = ctx
        if value:
            ctx.meta[_JSON] = True

    return click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True, callback=note, help="Answer in JSON."
    )(verb)


def wants_json() -> bool:
    ctx = click.get_current_context(silent=True)
    return bool(ctx is not None and ctx.meta.get(_JSON))


def emit(value: Any, text: str | Iterable[str]) -> None:
    """``value`` for programs, or ``text`` (lines) for people."""
    if wants_json():
        click.echo(json.dumps(value))
        return
    for line in [text] if isinstance(text, str) else text:
        click.echo(line)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Container[str] = ()) -> Iterator[str]:
    """Aligned columns, a line each row; those of the names in ``right`` to the right, as numbers are."""
    cells = [list(head), *([plain(str(cell), keep="") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        columns = zip(head, row, widths, strict=True)
        padded = (cell.rjust(width) if name in right else cell.ljust(width) for name, cell, width in columns)
        yield "  ".join(padded).rstrip()


def plain(text: str, keep: str = "\n\t") -> str:
    """``text`` without what would steer the terminal: a guest may have written it."""
    text = text.replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c in keep else f"\\x{ord(c):02x}" for c in text)


def duration(seconds: float | None) -> str:
    """As ``3m12s``."""
    if seconds is None:
        return "-"
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if left >= size or parts:
            parts.append(f"{left // size}{unit}")
            left %= size
    return "".join([*parts, f"{left}s"])


def size(count: float) -> str:
    """Bytes, as ``20.0 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:g} B"
        count /= 1024
    return f"{count:.1f} TiB"


def mib(count: int) -> str:
    """Bytes in MiB, without the unit."""
    if 0 < count < 1 << 20:
        return "<1"
    return f"{count / (1 << 20):.1f}".removesuffix(".0")


def moment(at: float) -> str:
    """Local time, with milliseconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
