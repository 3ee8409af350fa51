"""The tables of docs/performance.md, made from the results that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.results import HERE, MINE, Report

FILE = Path(__file__).parent.parent / "docs" / "performance.md"


def kept(names: Sequence[str], place: Path = HERE) -> list[Report]:
    """Those of the benchmarks that have run."""
    files = [place / f"{name}.json" for name in names]
    return [Report.load(file) for file in files if file.exists()]


def table(report: Report) -> Iterator[str]:
    """In Markdown: where it comes from, and medians (least-most) of its rounds."""
    yield f"`{report.command}`, {report.rounds} rounds; {report.about()}."
    yield from ("", f"| | {MINE} | peer | | ratio |", "| --- | ---: | --- | ---: | ---: |")
    for row in report.rows:
        if row.level == "terminal":
            continue
        better = "" if row.better == "less" else " (more is better)"
        first = f"| {row.row}, {row.unit}{better} | {row.span(MINE) if MINE in row.values else '-'} |"
        for peer in row.peers() or [""]:
            theirs = f"{row.span(peer)}" if peer else ""
            yield f"{first} {peer} | {theirs} | {row.ratio(peer) or '-' if peer else ''} |"
            first = "| | |"
    for peer, why in report.missing.items():
        yield from ("", f"{peer} is not measured: {why}")


def fill(text: str, reports: Sequence[Report]) -> str:
    """``text`` with each report's table between its marks. Raises ValueError if there are none for one."""
    for report in reports:
        begin, end = f"<!-- {report.name} -->\n", f"<!-- /{report.name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"no place for the table: no {begin.strip()} and {end}")
        text = before + begin + "\n".join(table(report)) + "\n" + end + after
    return text


def write(reports: Sequence[Report], file: Path = FILE) -> None:
    file.write_text(fill(file.read_text(), reports))
