"""Each benchmark that needs no guest, as short as can be, where no peer can be fetched: it still runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bench import qemu
from lab import packages
from lab.progress import LabError

SHORT = {
    "block": ["--size=1", "--bytes=1"],
    "density": ["--fleets=1", "--seconds=0.1"],
    "saturated": ["--seconds=0.2"],
    "rpc": ["--calls=64", "--clients=70"],
    "start": ["--seconds=0.1"],
    "xenstore": ["--count=50", "--nodes=50"],
}
COMPILED = ("block", "saturated", "xenstore")


def none(*args: object) -> tuple[str, ...]:
    raise LabError("cannot fetch it: no network. Try again.")


@pytest.mark.parametrize("name", SHORT)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in COMPILED and shutil.which("cc") is None:
        pytest.skip("no C compiler here: install gcc and libc6-dev")
    monkeypatch.setattr(qemu, "get", none)
    monkeypatch.setattr(packages, "fetch", none)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None)  # it would be this process's, too
    monkeypatch.setenv("LAB_RESULTS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [name, "--rounds=1", *SHORT[name]])
    import_module(f"bench.{name}").main()
    (file,) = tmp_path.glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["rounds"] == 1 and kept["rows"]
    assert all(values["xenpvd"] for values in (row["values"] for row in kept["rows"]))
    assert set(kept["missing"]) == {"block": set(), "saturated": set(), "xenstore": {"xenstored"}}.get(
        name, {"qemu"}
    )
