"""What the parameters refuse before anything happens."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from xenpvd.rpc import models
from xenpvd.rpc.methods import METHODS
from xenpvd.views import Phase, Runstate

REFUSED: list[tuple[type[models.Params] | type[models.DriveAddParams], dict[str, Any]]] = [
    (models.NoParams, {"x": 1}),
    (models.CheckParams, {"config": "web1.toml"}),
    (models.StartParams, {"config": {"kernel": "/k", "memroy": 512}}),
    (models.ShutdownParams, {"mode": "suspend"}),
    (models.ShutdownParams, {"timeout": -1}),
    (models.ShutdownParams, {"timeout": float("inf")}),
    (models.ShutdownParams, {"timeout": True}),
    (models.WaitParams, {}),
    (models.WaitParams, {"for": "steady"}),
    (models.WaitParams, {"for": "console:"}),
    (models.WaitParams, {"for": "xenstore:"}),
    (models.WaitParams, {"for": "xenstore:a b"}),
    (models.WaitParams, {"for": "console:" + "(" * 249}),
    (models.WaitParams, {"for_": "devices"}),
    (models.DriveAddParams, {"vdev": "../x", "target": "/a"}),
    (models.DriveAddParams, {"vdev": "xvda", "target": "/a\0b"}),
    (models.DriveAddParams, {"vdev": "xvda", "target": ""}),
    (models.DriveAddParams, {"vdev": "xvda", "target": "/a", "wait": "yes"}),
    (models.DriveRemoveParams, {"vdev": "xvda", "force": 1}),
    (models.ConsoleReadParams, {"console": 1}),
    (models.ConsoleReadParams, {"since": 2**63}),
    (models.ConsoleReadParams, {"max": 0}),
    (models.ConsoleWriteParams, {}),
    (models.ConsoleWriteParams, {"text": "a", "base64": "YQ=="}),
    (models.ConsoleWriteParams, {"base64": "YQ"}),
    (models.ConsoleWriteParams, {"base64": "Y!Q="}),
    (models.ConsoleWriteParams, {"base64": "ä"}),
    (models.ConsoleAttachParams, {"mode": "wo"}),
    (models.XenstorePathParams, {"path": "tool"}),
    (models.XenstorePathParams, {"path": "/a\0"}),
    (models.XenstorePathParams, {"path": "/" + "a" * 3072}),
    (models.XenstoreTreeParams, {"depth": -1}),
    (models.SubscribeParams, {"names": []}),
    (models.SubscribeParams, {"names": "drive.*"}),
    (models.SubscribeParams, {"names": ["*" * 65]}),
    (models.SubscribeParams, {"since": "0"}),
    (models.HistoryParams, {"max": 4097}),
]


def test_the_examples_by_hand_show_this_api() -> None:
    page = (Path(__file__).parents[2] / "docs/rpc.md").read_text(encoding="utf-8")
    shown = re.findall(r'"api":"([0-9.]+)"|^web1 ([0-9.]+) running$', page, re.MULTILINE)
    assert ["".join(each) for each in shown] == [models.API] * 2


@pytest.mark.parametrize(("model", "params"), REFUSED, ids=lambda value: repr(value)[-40:])
def test_refused(model: type[models.Params], params: dict[str, Any]) -> None:
    """N10."""
    with pytest.raises(ValidationError):
        model.model_validate(params)


@pytest.mark.parametrize(
    "for_", [*Phase, *Runstate, "console:login: (", "console:a:b", "xenstore:data/ready", "xenstore:/tool"]
)
def test_wait_for(for_: str) -> None:
    assert models.WaitParams.model_validate({"for": for_}).for_ == for_


def test_a_whole_definition_goes_in_as_json() -> None:
    definition = {
        "kernel": "/k",
        "memory": 1024,
        "disk": [{"vdev": "xvda", "target": "/a"}],
        "shim": {"path": "/s"},
    }
    config = models.StartParams.model_validate({"config": definition}).config
    assert config is not None
    assert config.disk[0].vdev == "xvda"


def test_drive_add_carries_every_key_of_a_disk() -> None:
    disk = {"vdev": "xvdb", "target": "/b", "access": "ro", "format": "raw"}
    disk |= {"sector_size": 4096, "cache": "none", "discard": False, "persistent": True, "device": "cdrom"}
    disk |= {"limits": {"bytes_per_second": 1, "ops_per_second": 2, "burst": 0.5}}
    assert models.DriveAddParams.model_validate({**disk, "wait": False}).disk().model_dump() == disk


def test_console_write_data() -> None:
    assert models.ConsoleWriteParams(text="é\r").data() == "é\r".encode()
    assert models.ConsoleWriteParams(base64="/wA=").data() == b"\xff\0"


def test_what_is_not_called_is_not_built() -> None:
    """A daemon's start would take a tenth longer."""

    class Some(models.Params):
        number: int

    assert not Some.__pydantic_complete__
    assert Some.model_validate({"number": 1}).number == 1
    assert Some.__pydantic_complete__
    method = replace(METHODS["daemon.ping"])
    assert "result" not in vars(method)
    assert method.result is method.result
