"""The README's chart: for each row, how many times as good as its peer xenpvd is, on a logarithmic scale.

Bars to the right of the line are ahead, those to the left are behind; the thin line is the rounds' range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from bench.results import HERE, MINE, Report, Row, Span, number

FILE = HERE / "chart.svg"
WIDTH, LABEL, VALUES = 900, 350, 190
LINE, HEAD = 17, 30
TIMES = "\u00d7"
TICKS = (1, 3, 10, 30, 100, 300, 1000)

STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.head { font-weight: 600 }
.aside { fill: #59636e }
.page { fill: #ffffff }
.grid { stroke: #d1d9e0 }
.one { stroke: #1f2328; stroke-width: 1.5 }
.ahead { fill: #2f7d4f }
.behind { fill: #c05717 }
.range { stroke: #59636e; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.aside { fill: #9198a1 }
.page { fill: #0d1117 }
.grid { stroke: #3d444d }
.one { stroke: #f0f6fc }
.ahead { fill: #4fae77 }
.behind { fill: #e08a4a }
.range { stroke: #b7bdc8 }
}"""


def bars(report: Report) -> list[tuple[Row, str, Span]]:
    """Each row of the chart's, a peer, and xenpvd's lead over it."""
    rows = [row for row in report.rows if row.level == "chart"]
    found = [(row, peer, row.lead(peer)) for row in rows for peer in row.peers()]
    return [(row, peer, lead) for row, peer, lead in found if lead is not None]


def svg(reports: Sequence[Report]) -> str:
    groups = [(report, found) for report in reports if (found := bars(report))]
    leads = [lead.median for _, found in groups for *_, lead in found]
    most = max((abs(math.log10(lead)) for lead in leads), default=1)
    scale = next((tick for tick in TICKS if math.log10(tick) >= max(most, 0.5)), TICKS[-1])
    height = 60 + sum(HEAD + LINE * len(found) for _, found in groups)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>xenpvd beside its peers</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        *_axis(scale, height),
    ]
    y = 50
    for report, found in groups:
        y += HEAD
        where = f"{report.date}{', in the lab' if 'in the lab' in report.machine else ''}"
        lines.append(f'<text class="head" x="8" y="{y - 8}">{escape(report.title)}</text>')
        lines.append(_text(WIDTH - 8, y - 8, where, "aside", "end"))
        for row, peer, lead in found:
            lines += _bar(y, row, peer, lead, scale)
            y += LINE
    return "\n".join([*lines, "</svg>"]) + "\n"


def _x(lead: float, scale: int) -> float:
    middle, half = (LABEL + WIDTH - VALUES) / 2, (WIDTH - VALUES - LABEL) / 2 - 12
    part = math.log10(lead) / math.log10(scale)
    return round(middle + half * max(-1.0, min(1.0, part)), 1)


def _axis(scale: int, height: int) -> Iterator[str]:
    yield _text(_x(1 / scale, scale), 14, "xenpvd is worse", "aside", "start")
    yield _text(_x(1, scale), 14, "as its peer", "aside", "middle")
    yield _text(_x(scale, scale), 14, "better", "aside", "end")
    for tick in (tick for tick in TICKS if tick <= scale):
        for x in sorted({_x(1 / tick, scale), _x(tick, scale)}):
            kind = "one" if tick == 1 else "grid"
            yield f'<line class="{kind}" x1="{x}" x2="{x}" y1="36" y2="{height - 8}"/>'
            if tick == scale or tick in (10, 100):
                yield _text(x, 30, f"{tick}{TIMES}", "aside", "middle")


def _bar(y: int, row: Row, peer: str, lead: Span, scale: int) -> Iterator[str]:
    one, end = _x(1, scale), _x(lead.median, scale)
    kind = "ahead" if lead.median >= 1 else "behind"
    yield (
        f'<text x="{LABEL - 8}" y="{y + 9}" text-anchor="end">{escape(row.row)} '
        f'<tspan class="aside">/ {escape(peer)}</tspan></text>'
    )
    yield f'<rect class="{kind}" x="{min(one, end)}" y="{y}" width="{abs(one - end):.1f}" height="10"/>'
    least, most = _x(lead.least, scale), _x(lead.most, scale)
    yield f'<line class="range" x1="{least}" x2="{most}" y1="{y + 5}" y2="{y + 5}"/>'
    mine, theirs = number(row.span(MINE).median), number(row.span(peer).median)
    yield _text(WIDTH - 8, y + 9, f"{mine} : {theirs} {row.unit}", "aside", "end")


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def write(reports: Sequence[Report], file: Path = FILE) -> None:
    file.write_text(svg(reports))
