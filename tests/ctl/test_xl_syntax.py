"""The text of an xl.cfg: what it says, and messages for all else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.ctl.xl_syntax import Setting, XlFault, parse


def values(text: str) -> dict[str, object]:
    return {key: setting.value for key, setting in parse(text).items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# nothing\n\n;;\n", {}),
        ("name = 'web1'", {"name": "web1"}),
        ('name="h0"; type="hvm"  # both\n', {"name": "h0", "type": "hvm"}),
        ("memory=0x200\r\nvcpus = 010\r\n", {"memory": "0x200", "vcpus": "010"}),
        ("rtc_timeoffset = -3600", {"rtc_timeoffset": "-3600"}),
        ("disk = [\n  'a', # one\n\n  \"b\",\n]\n", {"disk": ["a", "b"]}),
        ("disk=[]", {"disk": []}),
        ("vnuma = [ [ 'pnode=0', 'size=1' ], [ 2 ] ]", {"vnuma": [["pnode=0", "size=1"], ["2"]]}),
        (r"extra = 'it\'s \"a\"\t\\ \x41\101'", {"extra": 'it\'s "a"\t\\ AA'}),
        ("extra = '# no comment; no end'", {"extra": "# no comment; no end"}),
        ("a = 1\na = 2", {"a": "2"}),
        ("a = 'x'\na += 'y'\nb += ['1']\nb += ['2']", {"a": "xy", "b": ["1", "2"]}),
        ("kernel = 'Größe' # \udcfc", {"kernel": "Größe"}),  # a comment of another encoding
    ],
)
def test_what_it_says(text: str, expected: dict[str, object]) -> None:
    assert values(text) == expected


def test_lines() -> None:
    assert parse("\n# x\nname = 'a'\ndisk = [\n'b',\n]\nmemory = 1") == {
        "name": Setting("a", 3),
        "disk": Setting(["b"], 4),
        "memory": Setting("1", 7),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nname = 'web1", "line 2: a string does not end on its line."),
        ("import os", "line 1: after import an = is wanted."),
        ("arch = os.uname()[4]", "line 1: a string, a number or a list is wanted here, not 'os.uname'."),
        ("kernel = '/boot/' + v", r"line 1: cannot read '\+ v'.* no Python. Write the values out."),
        ("memory = 512 * 2", r"line 1: cannot read '\* 2'"),
        ("memory = 512 512", "line 1: cannot read '512'"),
        ("x = (1, 2)", r"line 1: cannot read '\(1, 2\)'"),
        ("name =\n", "line 1: a string, a number or a list is wanted here."),
        ("name", "line 1: after name an = is wanted."),
        ("= 1", "line 1: a key is wanted here, as in: memory = 512, not '='."),
        ("a = 1\ndisk = [ 'a',\n'b'\n", "line 2: this list has no end. A ] is missing."),
        ("disk = [ 'a' 'b' ]", "line 1: in a list a comma is missing."),
        ("disk = [ , ]", "line 1: a string, a number or a list is wanted here, not ','."),
        ("disk = " + "[" * 100_000, "line 1: there are too many lists in lists."),
        (r"name = '\d'", r"line 1: there is no such escape as \\d in a string."),
        (r"name = '\xff'", r"line 1: \\xff is no character of ASCII"),
        (r"name = '\0'", r"line 1: \\0 is no character of ASCII"),
        ("name = 'a\0b'", "line 1: a string is no UTF-8"),
        ("name = '\udcfc'", "line 1: a string is no UTF-8"),
        ("a = 1\n\na += ['b']", "line 3: a cannot be both a list and a string."),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(XlFault, match=message):
        parse(text)


_PIECES = st.sampled_from(
    [*"[],;=#'\"\\\n +-1aZ(", "+=", "name", "disk", "0x1", "'a'", '"b"', "\\x41", "\udcfc"]
)


@given(st.one_of(st.text(), st.lists(_PIECES).map("".join)))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        found = parse(text)
    except XlFault as fault:
        assert str(fault).startswith("line ")
        assert str(fault).endswith(".")
    else:
        assert all(key and setting.line > 0 for key, setting in found.items())
