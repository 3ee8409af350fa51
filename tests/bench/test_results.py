"""Ratios, tables and what is kept of a benchmark's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import qemu, results
from bench.results import Kind, Report, Row, Span, number
from lab.progress import LabError

LATENCY = Kind("read", "µs", level="chart")
RATE = Kind("calls", "1/s", "more")


def report() -> Report:
    made = Report("rpc", "Calls", "2026-11-28", "a machine", {"xenpvd": "0.1.0"}, "python -m bench.rpc")
    for mine, theirs in ((20.0, 10.0), (60.0, 20.0), (10.0, 10.0)):
        made.note(LATENCY, "xenpvd", mine)
        made.note(LATENCY, "qemu", theirs)
    made.note(RATE, "xenpvd", 5000)
    made.note(RATE, "qemu", 10000)
    return made


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    latency, rate = report().rows
    assert latency.ratio("qemu") == Span(2.0, 1.0, 3.0)
    assert rate.ratio("qemu") == Span(0.5, 0.5, 0.5)


def test_a_lead_is_above_one_where_xenpvd_is_better_whichever_way_that_is() -> None:
    latency, rate = report().rows
    assert latency.lead("qemu") == Span(0.5, 1 / 3, 1.0)
    assert rate.lead("qemu") == Span(0.5, 0.5, 0.5)
    rate.values["qemu"] = [2500.0]
    assert rate.lead("qemu") == Span(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    "values",
    [
        {"xenpvd": [1.0]},
        {"qemu": [1.0]},
        {"xenpvd": [1.0], "qemu": [0.0]},  # idle CPU may be none at all
        {"xenpvd": [1.0], "qemu": []},
    ],
)
def test_without_a_pair_there_is_no_ratio(values: dict[str, list[float]]) -> None:
    row = Row("idle", "ms", "less", "docs", values)
    assert row.ratio("qemu") is None and row.lead("qemu") is None


def test_a_ratio_of_nothing_is_no_lead() -> None:
    row = Row("idle", "ms", "less", "docs", {"xenpvd": [0.0], "qemu": [1.0]})
    assert row.ratio("qemu") == Span(0, 0, 0)
    assert row.lead("qemu") is None


def test_what_is_kept_has_the_shape_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_RESULTS", str(tmp_path))
    made = report()
    made.miss("echo", "no such thing")
    made.finish()
    kept = json.loads((tmp_path / "rpc.json").read_text())
    assert kept["rounds"] == 3 and kept["missing"] == {"echo": "no such thing"}
    assert kept["rows"][0] == {
        "row": "read",
        "unit": "µs",
        "better": "less",
        "level": "chart",
        "values": {"xenpvd": [20.0, 60.0, 10.0], "qemu": [10.0, 20.0, 10.0]},
        "ratios": {"qemu": {"median": 2.0, "least": 1.0, "most": 3.0}},
    }
    assert Report.load(tmp_path / "rpc.json") == made


def test_the_table_has_a_line_for_each_peer_and_why_one_is_missing() -> None:
    made = report()
    made.note(LATENCY, "echo", 4.0)
    made.missing["xenstored"] = "it ended"
    lines = list(made.table())
    assert lines[1].split() == [
        "read,",
        "µs",
        "less",
        "20.0",
        "(10.0-60.0)",
        "qemu",
        "10.0",
        "(10.0-20.0)",
        "2.00",
        "(1.00-3.00)",
    ]
    assert lines[2].split() == ["echo", "4.00", "5.00"]
    assert lines[3].split() == ["calls,", "1/s", "more", "5,000", "qemu", "10,000", "0.500"]
    assert lines[-1] == "xenstored is not measured: it ended"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.04271, "0.0427"), (1.0, "1.00"), (36.04, "36.0"), (163.7, "164"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits_that_tell(value: float, text: str) -> None:
    assert number(value) == text


def test_where_qemu_cannot_be_had_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> tuple[str, ...]:
        raise LabError("cannot fetch it: no network. Try again.")

    monkeypatch.setattr(qemu, "get", none)
    made, names = results.begin("Calls", ["echo", "qemu", "qemu-uring"])
    assert names == ["xenpvd", "echo"]
    assert made.missing == {"qemu": "cannot fetch it: no network. Try again."}
    assert "qemu is not measured: cannot fetch it" in capsys.readouterr().out
    assert set(made.versions) == {"xenpvd", "Python", "uvloop"}


def test_a_lab_hosts_results_tell_on_what_machine_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENPVD_BENCH_MACHINE", "AMD EPYC, 2 CPUs")
    assert results.machine().startswith("AMD EPYC, 2 CPUs; in the lab, an emulated CPU, Linux ")
