"""The client's types: what is kept in xenpvd/client is what the API says, and type checkers see it."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xenpvd.rpc import __main__, python_types
from xenpvd.rpc.methods import METHODS
from xenpvd.rpc.schema import document

HOUSE = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["shapes", "params", "methods"])
def test_no_drift(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rpc", "--python", name])
    __main__.main()
    generated = capsys.readouterr().out
    command = f"python -m xenpvd.rpc --python {name} > xenpvd/client/{name}.py"
    assert (HOUSE / f"xenpvd/client/{name}.py").read_text() == generated, f"run: {command}"


def test_methods_of_a_connection_are_all_that_use_it() -> None:
    more = ("client.stream", "call.rights")
    use = [name for name, method in METHODS.items() for word in more if word in inspect.getsource(method.run)]
    assert sorted(set(use)) == sorted(python_types.STREAMING)


def test_shapes() -> None:
    api = document(METHODS)
    asked = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}, "b": {}}}
    told = {"properties": {"a-b": {"enum": [1, "x"]}, "c": {"$ref": "#/components/schemas/Word"}}}
    api["components"]["schemas"] = {"Word": {"enum": ["yes"]}, "Told": told, "Asked": asked}
    one = {"name": "x.y", "summary": "Do it.", "result": {"schema": {"$ref": "#/components/schemas/Told"}}}
    api["methods"] = [
        one | {"params": [{"name": "z", "required": False, "schema": {"$ref": "#/components/schemas/Asked"}}]}
    ]
    text = python_types.modules(api, METHODS | {"x.y": METHODS["guest.wait"]})
    assert "class Asked(TypedDict):\n    a: int\n    b: NotRequired[Any]\n" in text["shapes"]
    assert 'Word: TypeAlias = Literal["yes"]\n' in text["shapes"]
    assert '        "a-b": \'Literal[1, "x"]\',\n        "c": "Word",\n' in text["shapes"]
    assert "class WaitParams(TypedDict):\n    z: NotRequired[Asked]\n" in text["params"]
    assert "async def x_y(self, **params: Unpack[WaitParams]) -> Told:" in text["methods"]


def test_a_type_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "from xenpvd.client import Guest\n"
        "async def right(guest: Guest) -> int:\n"
        '    added = await guest.drive_add(vdev="xvdb", target="/srv/b.img", access="ro")\n'
        '    await guest.guest_start(config={"name": "a", "kernel": "/k", "disk": [{"vdev": "xvda"}]})\n'
        '    await guest.guest_wait(for_="devices")\n'
        '    return added["drive"]["size"] + len((await guest.evtchn_list())[0]["remote-domain"])\n'
        "async def wrong(guest: Guest) -> None:\n"
        '    await guest.drive_add(vdef="xvdb")\n'
        "    await guest.drive_add()\n"
        '    await guest.guest_shutdown(mode="fly")\n'
        '    (await guest.drive_list())[0]["sise"]\n'
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, "program.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(HOUSE), "PYTHONPATH": str(HOUSE)},
        check=False,
    )
    lines = sorted({int(line.split(":")[1]) for line in checked.stdout.splitlines() if ": error:" in line})
    assert lines == [8, 9, 10, 11], checked.stdout + checked.stderr
