"""The text for Prometheus: read by its own client's parser, and held against what docs/metrics.md says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.service import FakeService
from xenpvd.config import LABELS, DiskConfig
from xenpvd.figures import GuestStats, RpcCall, RpcStats
from xenpvd.rpc.metrics import FAMILIES, exposition

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture
async def stats(service: FakeService) -> GuestStats:
    await service.drive_add(DiskConfig(vdev="xvda", target="/a"), False, 1)
    await service.drive_add(DiskConfig(vdev="xvdb", target="/b"), False, 1)
    for ns in (500, 3000, 3000, 5_000_000_000):
        service.latency.note(ns)
    service.calls.end("guest.wait", 1005)
    return await service.guest_stats()


def read(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in family.samples}


async def test_a_scraper_reads_them(stats: GuestStats) -> None:
    families = read(exposition(stats))
    assert values(families["xenpvd_disk_bytes"], "vdev", "operation") == {
        (vdev, operation): size << 20
        for vdev in ("xvda", "xvdb")
        for operation, size in (("read", 10), ("write", 5))
    }
    states = values(families["xenpvd_guest_state"], "state")
    assert [state for (state,), value in states.items() if value] == ["running"] and len(states) == 7
    assert values(families["xenpvd_rpc_calls"], "method", "code") == {("guest.wait", "1005"): 1}
    assert values(families["xenpvd_hypercalls"], "operation", "result")["physdev_op", "ENOSYS"] == 11
    assert values(families["xenpvd_guest_uptime_seconds"]) == {(): 192.4}


async def test_all_are_there_and_typed(stats: GuestStats) -> None:
    found = list(text_string_to_metric_families(exposition(stats)))
    # the parser takes _total off a counter's name
    names = [family.name + "_total" * (family.type == "counter") for family in found]
    assert names == [family.name for family in FAMILIES]
    assert [family.type for family in found] == [family.kind for family in FAMILIES]
    for family, said in zip(found, FAMILIES, strict=True):
        assert family.documentation == said.help
        assert family.samples, f"{family.name} has no sample"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {"guest", *said.labels}, sample


async def test_names_follow_the_conventions() -> None:
    for name, kind, *_ in FAMILIES:
        assert name.startswith("xenpvd_")
        assert name.endswith("_total") == (kind == "counter"), name
        if kind == "histogram":
            assert name.endswith("_seconds"), name
    bare = [family.name.removesuffix("_total") for family in FAMILIES]
    assert len(set(bare)) == len(bare), "one of OpenMetrics' families could not be told from another"


async def test_no_series_comes_twice(stats: GuestStats) -> None:
    series = [line.rpartition(" ")[0] for line in exposition(stats).splitlines() if line[0] != "#"]
    assert len(series) == len(set(series))


async def test_buckets_are_cumulative(stats: GuestStats) -> None:
    (family,) = [each for each in read(exposition(stats)).values() if each.name == "xenpvd_loop_lag_seconds"]
    buckets = {
        sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")
    }
    assert [buckets[le] for le in ("1e-06", "2e-06", "4e-06", "4.194304", "+Inf")] == [1, 1, 3, 3, 4]
    assert list(buckets.values()) == sorted(buckets.values())
    ends = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples[len(buckets) :]}
    assert ends == {"sum": pytest.approx(5.0000065), "count": 4}


@pytest.mark.parametrize(
    "value", ['say "hi"', "back\\slash", "two\nlines", "\\n", '\\"', "}", 'a="b",', "größe", "\\", ""]
)
async def test_a_label_comes_back_as_it_was(stats: GuestStats, value: str) -> None:
    text = exposition(replace(stats, labels={"tenant": value, "x": "1"}))
    for family in read(text).values():
        for sample in family.samples:
            assert (sample.labels["tenant"], sample.labels["x"]) == (value, "1")
    assert text.count("\n") == exposition(stats).count("\n")


@given(tenant=st.text(max_size=128))
@settings(max_examples=50, deadline=None)
def test_any_text_is_a_label(tenant: str) -> None:
    stats = asyncio.run(FakeService().guest_stats())
    text = exposition(replace(stats, labels={"tenant": tenant}))
    for family in read(text).values():
        assert {sample.labels["tenant"] for sample in family.samples} <= {tenant}


async def test_a_guest_that_is_none_has_no_vm(service: FakeService) -> None:
    await service.guest_destroy()
    families = read(exposition(await service.guest_stats()))
    assert not families["xenpvd_memory_resident_bytes"].samples
    assert not families["xenpvd_guest_uptime_seconds"].samples
    assert not families["xenpvd_vcpu_online"].samples
    assert values(families["xenpvd_guest_state"], "state")["stopped",] == 1


async def test_big_numbers_are_exact(stats: GuestStats) -> None:
    many = 2**53 - 1
    calls = RpcStats(1, many, (RpcCall("x", -32602, many),))
    assert f'code="-32602"}} {many}\n' in exposition(replace(stats, rpc=calls))


def test_labels_of_ours_are_reserved() -> None:
    """Or a definition's label would hide one of ours."""
    ours = {label for family in FAMILIES for label in family.labels}
    assert ours | {"guest", "le", "instance", "job"} == set(LABELS)


def table() -> Iterable[str]:
    yield "| metric | type | labels | |"
    yield "| --- | --- | --- | --- |"
    for family in FAMILIES:
        labels = " ".join(f"`{label}`" for label in family.labels)
        yield f"| `{family.name}` | {family.kind} | {labels} | {family.help} |"


def test_the_page_lists_them() -> None:
    assert "\n".join(table()) in DOC.read_text(encoding="utf-8"), "put this there:\n" + "\n".join(table())
