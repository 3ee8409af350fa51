"""What verbs that wait for a guest have in common: ``--timeout``, and what they say when ^C ends them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from xenpvd.ctl.output import INTERRUPTED, Failure

_F = TypeVar("_F", bound=Callable[..., Any])


def _seconds(value: str | float) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise click.BadParameter(f"{value!r} is no number of seconds.")
    return seconds


def timeout_option(default: float, what: str = "it") -> Callable[[_F], _F]:
    """``--timeout SECONDS``, for how long ``what`` may take."""
    return click.option(
        "--timeout",
        type=_seconds,
        default=default,
        show_default=True,
        metavar="SECONDS",
        help=f"How long {what} may take.",
    )


@contextmanager
def told(what_stays: str) -> Iterator[None]:
    """Around a call that waits: the guest knows already what it is asked, and ^C does not change that."""
    try:
        yield
    except KeyboardInterrupt:
        raise Failure(f"interrupted: {what_stays}", INTERRUPTED) from None
