"""import-xl: a guest of Xen's xl becomes a TOML definition, with what is not as it was in its comments."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xenpvd import paths
from xenpvd.ctl.output import USAGE, Failure, emit, json_option

if TYPE_CHECKING:
    from xenpvd.ctl.xl_keys import Note

#: More than any guest needs; the file may be another one than was meant.
FILE_MAX = 1 << 20


@click.command("import-xl")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def import_xl(file: Path) -> None:
    """Print the TOML definition of a guest that was xl's.

    FILE is its xl.cfg. What cannot be as it was is told on stderr and in the definition's comments.
    """
    from xenpvd.ctl import xl_keys, xl_syntax

    text = _read(file)
    try:
        definition, notes = xl_keys.convert(xl_syntax.parse(text), file.stem)
        _check(definition, file)
    except xl_syntax.XlFault as fault:
        raise Failure(f"cannot import {file}: {fault}") from None
    for note in notes:
        click.echo(f"xenpvctl: {_one_line(f'{file}: {note.key}: {note.what}.')}", err=True)
    told = {"config": definition, "notes": [note._asdict() for note in notes]}
    emit(told, toml(definition, notes, file.name))


def _read(file: Path) -> str:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise Failure(f"cannot read {file}: it is no regular file. Give the xl.cfg of a guest.", USAGE)
        with file.open("rb") as stream:
            data = stream.read(FILE_MAX + 1)
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the path
        why = fault.strerror if isinstance(fault, OSError) else fault
        raise Failure(f"cannot read {file}: {why}. Check the path.", USAGE) from None
    if len(data) > FILE_MAX:
        raise Failure(f"cannot import {file}: it is too large to be an xl.cfg. Check the path.", USAGE)
    # comments may be in any encoding; the parser looks at the strings
    return data.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")


def _check(definition: Mapping[str, Any], file: Path) -> None:
    """What we print is what the daemon takes. Raises :class:`XlFault`."""
    from xenpvd import config
    from xenpvd.ctl.xl_syntax import XlFault
    from xenpvd.errors import BadConfig

    anchored = json.loads(json.dumps(definition))
    paths.anchor(anchored, file.parent.absolute())
    try:
        config.parse(anchored, str(file))
    except BadConfig as fault:
        raise XlFault("; ".join(f"{loc}: {msg}" for loc, msg in fault.problems) + ".") from None


def toml(definition: Mapping[str, Any], notes: Iterable[Note], source: str) -> Iterator[str]:
    """The lines of the file."""
    notes = list(notes)
    yield f"# Made of {_one_line(source)} by: xenpvctl import-xl" + ("; not as it was:" if notes else "")
    for note in notes:
        yield f"#   {_one_line(note.key)}: {_one_line(note.what)}"
    yield ""
    tables = [(key, value) for key, value in definition.items() if isinstance(value, (dict, list))]
    yield from _pairs({key: value for key, value in definition.items() if (key, value) not in tables})
    for key, value in tables:
        for table in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{key}]]" if isinstance(value, list) else f"[{key}]"
            yield from _pairs(table)


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        # a string of JSON is one of TOML, but for DEL
        yield f"{key} = " + json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    """The file's texts come from somebody else: none ends a comment, or steers a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
