from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from xenpvd.backends.blkif import build


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(build.SOURCES, tmp_path / "c")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "SOURCES", tmp_path / "c")
    return tmp_path


def test_it_compiles_without_a_warning_and_once(here: Path) -> None:
    old = here / "native-0123.so"
    old.touch()
    made = build.build([*build.FLAGS, "-Werror"])
    assert made == build.library() and made.exists() and not old.exists()
    before = made.stat().st_mtime_ns
    assert build.build().stat().st_mtime_ns == before
    assert {path.name for path in here.iterdir()} == {"c", made.name}


@pytest.mark.parametrize("name", ["native.c", "plane.h"])
def test_another_source_is_another_library(here: Path, name: str) -> None:
    before = build.library()
    source = build.SOURCES / name
    source.write_text(source.read_text() + "/* */")
    assert build.library() != before


@pytest.mark.parametrize(
    ("compiler", "why"), [("none-of-that-name", "there is no C compiler"), ("false", "false failed")]
)
def test_no_compiler(here: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, why: str) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(RuntimeError, match=why):
        build.build()
    assert [path.name for path in here.iterdir()] == ["c"]
