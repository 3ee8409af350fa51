"""Which differences of two definitions are found, by their TOML paths, and which count at once."""

from __future__ import annotations

from typing import Any

import pytest

from xenpvd.changes import between, differences
from xenpvd.config import GuestConfig

DISK = {"vdev": "xvda", "target": "/a"}
OTHER = {"vdev": "xvdb", "target": "/b"}
LIMITS = {"ops_per_second": 9}


def config(**keys: Any) -> GuestConfig:
    return GuestConfig.model_validate({"kernel": "/k", **keys})


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        ({}, {}, []),
        ({"memory": 512}, {}, []),  # the default
        ({}, {"memory": 600, "on_crash": "restart"}, ["memory", "on_crash"]),
        ({}, {"console": {"log_max": 8192, "input": "shared"}}, ["console.input", "console.log_max"]),
        ({}, {"metrics": {"labels": {"a": "b"}}}, ["metrics.labels"]),
        ({}, {"shim": {"extra": "x"}, "ready": {"when": "shim"}}, ["shim.extra", "ready.when"]),
        ({}, {"channel": [{"name": "agent"}]}, ["channel"]),
        ({"disk": [DISK]}, {"disk": [DISK, OTHER]}, ["disk"]),
        ({"disk": [DISK, OTHER]}, {"disk": [OTHER, DISK]}, ["disk"]),
        (
            {"disk": [DISK, OTHER]},
            {"disk": [DISK, {**OTHER, "target": "/c", "limits": {"ops_per_second": 9}}]},
            ["disk.1.target", "disk.1.limits"],
        ),
        ({"disk": [DISK]}, {"disk": [OTHER, {**DISK, "access": "ro"}]}, ["disk.1.access", "disk"]),
        ({"disk": [DISK, OTHER]}, {"disk": [{**OTHER, "limits": LIMITS}]}, ["disk.0.limits", "disk"]),
    ],
)
def test_differences(old: dict[str, Any], new: dict[str, Any], paths: list[str]) -> None:
    assert list(differences(config(**old), config(**new))) == paths


def test_what_counts_at_once() -> None:
    old = config(disk=[DISK, OTHER], memory=256)
    new = config(
        disk=[{**DISK, "limits": {"ops_per_second": 9}}, {**OTHER, "access": "ro"}],
        memory=300,
        on_reboot="destroy",
        console={"log_keep": 2},
        metrics={"labels": {"a": "b"}},
        access={"viewer": ["group:50"]},
    )
    changes = between(old, new)
    assert set(changes.applied) == {"disk.0.limits", "on_reboot", "console.log_keep", "metrics.labels"}
    assert set(changes.next_start) == {"memory", "disk.1.access"}
    now = changes.running
    assert (now.memory, now.on_reboot, now.console.log_keep) == (256, "destroy", 2)
    assert now.metrics.labels == {"a": "b"} and now.access == new.access
    assert now.disk[0] == new.disk[0] and now.disk[1] == old.disk[1]
    assert between(now, new).applied == () and between(now, new).next_start == changes.next_start


@pytest.mark.parametrize("more", [[OTHER], []])
def test_limits_count_though_other_disks_come_or_go(more: list[dict[str, Any]]) -> None:
    third = {"vdev": "xvdc", "target": "/c", "limits": LIMITS}
    old = config(disk=[DISK, *([] if more else [OTHER])])
    new = config(disk=[third, *more, {**DISK, "limits": LIMITS}])
    changes = between(old, new)
    assert changes.applied == (f"disk.{1 + len(more)}.limits",) and changes.next_start == ("disk",)
    first, *rest = changes.running.disk
    assert first == new.disk[-1] and rest == list(old.disk[1:])
    assert between(changes.running, new) == ((), ("disk",), changes.running)


def test_all_of_it_counts() -> None:
    new = config(on_crash="restart")
    assert between(config(), new) == (("on_crash",), (), new)
