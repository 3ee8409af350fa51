"""Options that several verbs have, which mean the same with each; and those that contradict each other."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from click.core import ParameterSource

_F = TypeVar("_F", bound=Callable[..., Any])


def lines_option(default: int | None, most: int | None, text: str) -> Callable[[_F], _F]:
    """``-n N``, as with tail."""
    return click.option(
        "-n",
        "--lines",
        type=click.IntRange(1, most),
        default=default,
        show_default=default is not None,
        metavar="N",
        help=text,
    )


def no_wait_option(text: str) -> Callable[[_F], _F]:
    return click.option("--no-wait", is_flag=True, help=f"Do not wait until the guest has {text} it.")


def apart(*names: str) -> Callable[[_F], _F]:
    """Of the options ``names`` one at most may be typed; which of two was meant, nobody knows."""

    def around(verb: _F) -> _F:
        @wraps(verb)
        def run(*args: Any, **kwargs: Any) -> Any:
            ctx = click.get_current_context()
            typed = [
                name
                for param in ctx.command.params
                for name in names
                if name in param.opts
                and ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
            ]
            if len(typed) > 1:
                raise click.UsageError(f"{' and '.join(typed)} contradict each other. Give one of them.")
            return verb(*args, **kwargs)

        return run  # type: ignore[return-value]

    return around
