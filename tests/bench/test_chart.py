"""The chart is an SVG that any browser takes, and its bars go where the figures say."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

from bench import chart
from bench.results import Kind, Report

SVG = "{http://www.w3.org/2000/svg}"


def report(name: str = "rpc", **ratios: tuple[float, float]) -> Report:
    made = Report(name, "A & B <beside> C", "2026-11-28", "a machine", {}, "python -m bench.rpc")
    for row, (mine, theirs) in ratios.items():
        made.note(Kind(row, "µs", level="chart"), "xenpvd", mine)
        made.note(Kind(row, "µs", level="chart"), "qemu", theirs)
    return made


def drawn(*reports: Report) -> ET.Element:
    return ET.fromstring(chart.svg(reports))


def bars(root: ET.Element) -> list[tuple[str, float, float]]:
    """(kind, its left, its right) of each."""
    found = [one for one in root.iter(f"{SVG}rect") if one.get("class") in ("ahead", "behind")]
    at = [(one.get("class", ""), float(one.get("x", "")), float(one.get("width", ""))) for one in found]
    return [(kind, x, x + width) for kind, x, width in at]


def middle(root: ET.Element) -> float:
    (line,) = (one for one in root.iter(f"{SVG}line") if one.get("class") == "one")
    return float(line.get("x1", ""))


def test_bars_begin_at_one_and_go_to_the_right_where_xenpvd_is_ahead() -> None:
    root = drawn(report(twice=(10, 20), half=(20, 10), tenth=(100, 10), same=(7, 7)))
    one = middle(root)
    twice, half, tenth, same = bars(root)
    assert twice[0] == "ahead" and twice[1] == one < twice[2]
    assert half[0] == "behind" and half[1] < one
    assert abs((one - half[1]) - (twice[2] - one)) < 0.2  # as far to one side as to the other
    assert tenth[1] < half[1]
    assert same[1] == same[2] == one


def test_nothing_is_drawn_outside_and_no_line_above_another() -> None:
    root = drawn(report(worst=(1e9, 1)), report("disk", best=(1, 1e9)))
    assert all(chart.LABEL <= left <= right <= chart.WIDTH - chart.VALUES for _, left, right in bars(root))
    heights = sorted(float(one.get("y", "")) for one in root.iter(f"{SVG}text"))
    labels = [y for y in heights if y > 30]
    height = float(root.get("viewBox", "").split()[3])
    assert labels[-1] < height
    assert all(b - a >= 10 for a, b in itertools.pairwise(sorted(set(labels))))


def test_peers_that_are_missing_and_rows_for_the_terminal_are_left_out() -> None:
    made = report(twice=(10, 20))
    made.note(Kind("alone", "s", level="chart"), "xenpvd", 3)
    made.note(Kind("detail", "s", level="terminal"), "xenpvd", 3)
    made.note(Kind("detail", "s", level="terminal"), "qemu", 3)
    nothing = report("disk")
    nothing.missing["qemu"] = "not here"
    root = drawn(made, nothing)
    assert len(bars(root)) == 1
    assert ET.tostring(root, "unicode").count("A &amp; B &lt;beside&gt; C") == 1


def test_it_can_be_read_on_light_and_dark_pages_and_runs_nothing() -> None:
    text = chart.svg([report(twice=(10, 20))])
    assert "prefers-color-scheme: dark" in text
    assert "<script" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_without_results_it_is_empty(tmp_path: Path) -> None:
    chart.write([], tmp_path / "chart.svg")
    assert bars(ET.parse(tmp_path / "chart.svg").getroot()) == []
