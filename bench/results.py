"""What a benchmark finds: figures of each peer and round, shown as a table and kept as JSON.

Every benchmark makes one :class:`Report`, notes into it and finishes it. Only figures of the same round are
compared: the machine's speed changes less in a round than from one to the next.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench import qemu
from lab.progress import LabError

HERE = Path(__file__).parent / "results"
#: xenpvd's name among the peers
MINE = "xenpvd"
#: where a row is shown: each of them implies those behind it
Level = Literal["chart", "docs", "terminal"]


class Kind(NamedTuple):
    """What a row measures."""

    row: str
    unit: str
    better: Literal["less", "more"] = "less"
    level: Level = "docs"


class Span(NamedTuple):
    """The middle of several values, and their range."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Span:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)}-{number(self.most)})"


@dataclass
class Row:
    """The values of each peer, a value for each round."""

    row: str
    unit: str
    better: Literal["less", "more"]
    level: Level
    values: dict[str, list[float]] = field(default_factory=dict)

    def peers(self) -> list[str]:
        """Whom xenpvd is held against."""
        return [peer for peer in self.values if peer != MINE]

    def span(self, peer: str) -> Span:
        return Span.of(self.values[peer])

    def ratio(self, peer: str) -> Span | None:
        """xenpvd's value by the peer's, over the rounds; None where there are none, or the peer's are 0."""
        pairs = zip(self.values.get(MINE, ()), self.values.get(peer, ()), strict=False)
        ratios = [mine / theirs for mine, theirs in pairs if theirs]
        return Span.of(ratios) if ratios else None

    def lead(self, peer: str) -> Span | None:
        """How many times as good as the peer xenpvd is, whichever way is better."""
        ratio = self.ratio(peer)
        if ratio is None or not ratio.least:
            return None
        return ratio if self.better == "more" else Span(1 / ratio.median, 1 / ratio.most, 1 / ratio.least)


@dataclass
class Report:
    """What one benchmark has found; ``missing`` are peers that cannot run here, and why."""

    name: str
    title: str
    date: str
    machine: str
    versions: dict[str, str]
    command: str
    rounds: int = 0
    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Report:
        kept = json.loads(path.read_text())
        rows = [
            Row(*(one[name] for name in ("row", "unit", "better", "level", "values"))) for one in kept["rows"]
        ]
        return cls(**{**kept, "rows": rows})

    def about(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.date}; {self.machine}; {versions}"

    def note(self, kind: Kind, peer: str, value: float) -> None:
        """A value of one more round."""
        found = next((row for row in self.rows if row.row == kind.row), None)
        if found is None:
            found = Row(*kind)
            self.rows.append(found)
        values = found.values.setdefault(peer, [])
        values.append(float(f"{value:.5g}"))
        self.rounds = max(self.rounds, len(values))

    def miss(self, peer: str, why: str) -> None:
        """``peer`` cannot be measured; the others go on."""
        self.missing[peer] = why
        print(f"{peer} is not measured: {why}", flush=True)

    def finish(self) -> None:
        """Print the table, and keep the figures."""
        print("\n".join(["", *self.table(), ""]), flush=True)
        place = Path(os.environ.get("LAB_RESULTS") or HERE)
        place.mkdir(exist_ok=True)
        (place / f"{self.name}.json").write_text(self.dump())

    def dump(self) -> str:
        """As JSON, a line for each row."""
        kept = self.kept()
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in kept.pop("rows"))
        head = json.dumps(kept, ensure_ascii=False, indent=1).removesuffix("\n}")
        return f'{head},\n "rows": [\n{rows}\n]}}\n'

    def kept(self) -> dict[str, Any]:
        """As it is in the JSON file; the ratios are there for others to read."""
        found = asdict(self)
        for row, kept in zip(self.rows, found["rows"], strict=True):
            kept["ratios"] = {
                peer: dict(zip(Span._fields, (float(f"{one:.4g}") for one in ratio), strict=True))
                for peer in row.peers()
                if (ratio := row.ratio(peer))
            }
        return found

    def table(self) -> Iterator[str]:
        """Medians over the rounds (least-most), and those of the rounds' own ratios, xenpvd by the peer."""
        head = ("", "better", MINE, "peer", "", "ratio")
        lines = [head, *self._lines()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        for line in lines:
            cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
            yield "  ".join(cells).rstrip()
        yield f"medians of {self.rounds} rounds (least-most); ratio: xenpvd by its peer, in the same round"
        for peer, why in self.missing.items():
            yield f"{peer} is not measured: {why}"

    def _lines(self) -> Iterator[tuple[str, ...]]:
        for row in self.rows:
            mine = str(row.span(MINE)) if MINE in row.values else "-"
            first: tuple[str, ...] = (f"{row.row}, {row.unit}", row.better, mine)
            for peer in row.peers() or [""]:
                theirs = str(row.span(peer)) if peer else ""
                yield (*first, peer, theirs, str(row.ratio(peer) or "-") if peer else "")
                first = ("", "", "")


def begin(
    title: str, peers: Sequence[str] = (), versions: Mapping[str, str] | None = None
) -> tuple[Report, list[str]]:
    """The report of the benchmark that runs, and who can be measured here: xenpvd and ``peers``, of which any
    QEMU is fetched. Says what is measured, where and with what."""
    names, used, why = [MINE, *peers], own_versions() | dict(versions or {}), ""
    if any(name.startswith("qemu") for name in names):
        try:
            used["QEMU"] = qemu.version(qemu.get())
        except LabError as fault:
            names = [name for name in names if not name.startswith("qemu")]
            why = str(fault)
    spec = sys.modules["__main__"].__spec__
    module = spec.name if spec else "bench"
    date = datetime.datetime.now().astimezone().strftime("%Y-%m-%d")
    command = " ".join(["python -m", module, *sys.argv[1:]])
    report = Report(module.rpartition(".")[2], title, date, machine(), used, command)
    print(f"\n{title}\n{command}\n{report.about()}", flush=True)
    if why:
        report.miss("qemu", why)
    return report, names


def number(value: float) -> str:
    """Three digits that tell, and no exponent."""
    if not value:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def own_versions() -> dict[str, str]:
    return {MINE: version("xenpvd"), "Python": platform.python_version(), "uvloop": version("uvloop")}


def machine() -> str:
    """CPU, load and kernel; of a lab host, of the machine that it is emulated on, too."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cpu = model[1].strip() if model else platform.machine()
    here = f"{cpu}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Linux {platform.release()}"
    outside = os.environ.get("XENPVD_BENCH_MACHINE")
    return f"{outside}; in the lab, an emulated CPU, Linux {platform.release()}" if outside else here


def rounds(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--rounds", type=int, default=default, help="in each of which all have their turn")
