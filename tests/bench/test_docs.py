"""docs/performance.md and the chart tell what is kept, and nothing else."""

from __future__ import annotations

import pytest

from bench import chart, docs
from bench.__main__ import NAMES
from bench.results import Kind, Report


def report() -> Report:
    made = Report("rpc", "Calls", "2026-11-28", "a machine", {"QEMU": "10.0.2"}, "python -m bench.rpc")
    for mine, theirs in ((20.0, 10.0), (60.0, 20.0)):
        made.note(Kind("read", "µs", level="chart"), "xenpvd", mine)
        made.note(Kind("read", "µs", level="chart"), "qemu", theirs)
    made.note(Kind("calls", "1/s", "more"), "xenpvd", 7)
    made.note(Kind("detail", "µs", level="terminal"), "xenpvd", 7)
    made.missing["echo"] = "no such thing"
    return made


def test_a_table_goes_between_its_marks_and_the_words_around_it_stay() -> None:
    text = docs.fill("# A\n<!-- rpc -->\nold\n<!-- /rpc -->\nwords\n", [report()])
    assert text == (
        "# A\n<!-- rpc -->\n"
        "`python -m bench.rpc`, 2 rounds; 2026-11-28; a machine; QEMU 10.0.2.\n"
        "\n"
        "| | xenpvd | peer | | ratio |\n"
        "| --- | ---: | --- | ---: | ---: |\n"
        "| read, µs | 40.0 (20.0-60.0) | qemu | 15.0 (10.0-20.0) | 2.50 (2.00-3.00) |\n"
        "| calls, 1/s (more is better) | 7.00 |  |  |  |\n"
        "\n"
        "echo is not measured: no such thing\n"
        "<!-- /rpc -->\nwords\n"
    )
    assert docs.fill(text, [report()]) == text


def test_each_benchmark_has_a_place_for_its_table() -> None:
    text = docs.FILE.read_text()
    assert all(text.count(f"<!-- {name} -->\n") == text.count(f"<!-- /{name} -->\n") == 1 for name in NAMES)


def test_a_table_without_a_place_is_told() -> None:
    with pytest.raises(ValueError, match="no <!-- rpc -->"):
        docs.fill("# A\n", [report()])


def test_the_documents_show_the_results_that_are_kept() -> None:
    reports = docs.kept(NAMES)
    assert reports and {path.stem for path in docs.HERE.glob("*.json")} <= set(NAMES)
    assert docs.fill(docs.FILE.read_text(), reports) == docs.FILE.read_text(), "run python -m bench --draw"
    assert chart.FILE.read_text() == chart.svg(reports), "run python -m bench --draw"
