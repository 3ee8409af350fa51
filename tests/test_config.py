"""The guest definition: what may stand in it, and where its problems are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.pydantic_errors import possible
from xenpvd.config import DiskConfig, GuestConfig, load, parse, words
from xenpvd.errors import BadConfig

MINIMAL = {"kernel": "/boot/vmlinuz"}


def test_what_need_not_be_said() -> None:
    config = parse(MINIMAL, "x")
    assert (config.name, config.memory, config.vcpus, config.cmdline) == ("guest", 512, 1, "")
    assert (config.ramdisk, config.disk, config.shim.path) == (None, (), "auto")
    assert (config.on_poweroff, config.on_reboot, config.on_crash) == ("destroy", "restart", "preserve")


def test_a_whole_definition() -> None:
    data = {
        "name": "web-1.example_2",
        "memory": 1024,
        "vcpus": 2,
        "kernel": "/k",
        "ramdisk": "/r",
        "cmdline": "root=/dev/xvda1 quiet",
        "shim": {"path": "/shim", "extra": "loglvl=all"},
        "disk": [
            {"vdev": "xvda", "target": "/a.img"},
            {"vdev": "xvdb1", "target": "/b.img", "access": "ro", "format": "raw"},
        ],
        "console": {"history": 65536},
        "on_poweroff": "preserve",
        "on_reboot": "destroy",
        "on_crash": "destroy",
    }
    config = parse(data, "x")
    assert config.disk[1].access == "ro" and config.console.history == 65536
    assert parse(config.model_dump(), "again") == config


@pytest.mark.parametrize(
    "change, where",
    [
        ({"kernel": None}, "kernel"),
        ({"kernel": ""}, "kernel"),
        ({"kernel": 5}, "kernel"),
        ({"memory": 63}, "memory"),
        ({"memory": (1 << 20) + 1}, "memory"),
        ({"memory": "lots"}, "memory"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": 33}, "vcpus"),
        ({"name": "Web"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "../etc"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": "web1\n"}, "name"),
        ({"cmdline": "x" * 1001}, "cmdline"),
        ({"cmdline": "x" * (1 << 20)}, "cmdline"),
        ({"shim": {"extra": "x" * 513}}, "shim.extra"),
        ({"shim": {"color": "red"}}, "shim.color"),
        ({"shim": "auto"}, "shim"),
        ({"console": {"history": 1}}, "console.history"),
        ({"on_crash": "explode"}, "on_crash"),
        ({"on_poweroff": "explode"}, "on_poweroff"),
        ({"disk": [{"vdev": "xvda"}]}, "disk.0.target"),
        ({"disk": [{"vdev": "xvda", "target": ""}]}, "disk.0.target"),
        ({"disk": [{"vdev": "xvda", "target": "a\0b"}]}, "disk.0.target"),
        ({"disk": [{"vdev": "floppy", "target": "/a"}]}, "disk.0.vdev"),
        ({"disk": [{"vdev": "xvda", "target": "/a", "access": "rx"}]}, "disk.0.access"),
        ({"disk": [{"vdev": "xvda", "target": "/a", "format": "qed"}]}, "disk.0.format"),
        ({"disk": [{"vdev": "xvda", "target": "nbd://h/a", "format": "qcow2"}]}, "disk.0.format"),
        ({"disk": [{"vdev": "xvda", "target": "http://h/a"}]}, "disk.0.target"),
        ({"disk": [{"vdev": "xvda", "target": "fd:root", "cache": "none"}]}, "disk.0.cache"),
        ({"disk": [{"vdev": "xvda", "target": "fd:root", "cache": "directsync"}]}, "disk.0.cache"),
        ({"disk": [{"vdev": "xvda", "target": "nbd://h/a", "cache": "directsync"}]}, "disk.0.cache"),
        (
            {"disk": [{"vdev": "xvda", "target": "/a", "format": "qcow2", "cache": "directsync"}]},
            "disk.0.cache",
        ),
        ({"disk": [{"vdev": "-51712", "target": "/a"}]}, "disk.0.vdev"),
        ({"disk": [{"vdev": "0b11", "target": "/a"}]}, "disk.0.vdev"),
        ({"disk": [{"vdev": "xvda", "target": "/a"}, {"vdev": "xvda", "target": "/b"}]}, "disk"),
        ({"disk": [{"vdev": f"d{n}", "target": "/a"} for n in range(65)]}, "disk"),
        ({"memmory": 512}, "memmory"),
    ],
)
def test_a_problem_has_a_place(change: dict[str, Any], where: str) -> None:
    """P12."""
    with pytest.raises(BadConfig) as caught:
        parse(MINIMAL | change, "/etc/xenpvd/web1.toml")
    assert [place for place, _ in caught.value.problems] == [where]
    assert str(caught.value).startswith(f"cannot use /etc/xenpvd/web1.toml: {where}: ")


def test_everything_that_may_be_wrong_has_words_of_ours() -> None:
    told = {(error["type"], words(error)) for error in possible(GuestConfig)}
    assert {kind for kind, said in told if "Input should" in said} == set()
    assert len(told) > 20


@pytest.mark.parametrize(
    "change, said",
    [
        ({"disk": {"vdev": "xvda"}}, "disk: it must be a list"),
        ({"access": {"viewer": "user:a"}}, "access.viewer: it must be a list"),
        ({"shim": "auto"}, "shim: it must be a table"),
        ({"shim": {"path": 5}}, "shim.path: it must be a text"),
        ({"shim": {"path": "shim"}}, 'shim.path: it must be an absolute path, or "auto"'),
        ({"memory": "lots"}, "memory: it must be a whole number"),
        ({"memory": 99.5}, "memory: it must be a whole number"),
        ({"memory": 63}, "memory: it must be at least 64"),
        ({"console": {"log_safe": "maybe"}}, "console.log_safe: it must be true or false"),
        (
            {"console": {"history": "10X"}},
            'console.history: it must be a number of bytes, or a text as "64K"',
        ),
        ({"console": {"match": ["("]}}, "console.match.0: missing ): ("),
        ({"on_crash": "explode"}, "on_crash: it must be 'destroy', 'restart' or 'preserve'"),
        ({"metrics": {"labels": {"1": "a"}}}, "metrics.labels.1: it takes letters"),
    ],
)
def test_problems_in_plain_words(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse(MINIMAL | change, "x")
    assert str(caught.value).startswith(f"cannot use x: {said}")


def test_all_problems_come_at_once() -> None:
    with pytest.raises(BadConfig) as caught:
        parse({"memory": 1, "vcpus": 0, "disk": [{}]}, "x")
    assert {place for place, _ in caught.value.problems} == {
        "memory", "vcpus", "kernel", "disk.0.vdev", "disk.0.target",
    }  # fmt: skip


@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
def test_what_an_image_by_descriptor_may_be_cached_as(cache: str) -> None:
    disk = DiskConfig.model_validate({"vdev": "xvda", "target": "fd:root", "cache": cache})
    assert disk.cache == cache


def test_a_definition_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(MINIMAL, "x").memory = 1  # type: ignore[misc]


keys = st.sampled_from([*GuestConfig.model_fields, "other"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(keys, values))
def test_anything_is_a_definition_or_a_list_of_problems(data: dict[str, Any]) -> None:
    try:
        config = parse(data, "x")
    except BadConfig as fault:
        assert fault.problems and all(isinstance(part, str) for pair in fault.problems for part in pair)
    else:
        assert config.kernel


# -- files


def test_a_file_names_its_guest(tmp_path: Path) -> None:
    path = tmp_path / "web1.toml"
    path.write_text('kernel = "/k"\n[[disk]]\nvdev = "xvda"\ntarget = "/a"\n')
    assert load(path).name == "web1" and load(path).disk[0].vdev == "xvda"
    path.write_text('kernel = "/k"\nname = "other"\n')
    assert load(path).name == "other"


@pytest.mark.parametrize(
    "content, text",
    [
        (b"kernel = ", "no valid TOML"),
        (b'kernel = "\xff"', "no valid TOML"),
        (b'kernel = "/k"\nkernel = "/l"', "no valid TOML"),
        (b"memory = " + b"1" * 5000, "no valid TOML: Exceeds the limit"),
        (b"memory = " + b"[" * 5000, "no valid TOML: maximum recursion depth exceeded"),
        (b'kernel = "/k"\nmemory = 1', "memory: "),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "web1.toml"
    path.write_bytes(content)
    with pytest.raises(BadConfig, match=f"cannot use {path}: .*{text}"):
        load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"cannot read .*web1.toml: No such file or directory\. Check"):
        load(tmp_path / "web1.toml")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(BadConfig, match="not a regular file"):
            load(path)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"guest": "x"}, "metrics.labels.guest.*the metrics have themselves"),
        ({"__name__": "x"}, "the metrics have themselves"),
        ({"le": "x"}, "the metrics have themselves"),
        ({"a-b": "x"}, "it takes letters, digits and '_'"),
        ({"1a": "x"}, "it takes letters, digits and '_'"),
        ({"a": 1}, "metrics.labels.a: it must be a text"),
        ({"a": "x" * 129}, "at most 128"),
        ({f"l{n}": "" for n in range(17)}, "at most 16"),
    ],
)
def test_labels_of_metrics(labels: dict[str, object], why: str) -> None:
    with pytest.raises(BadConfig, match=why):
        parse({"kernel": "/k", "metrics": {"labels": labels}}, "it")
    good = {"tenant": 'a "b"\n', "_x": ""}
    assert parse({"kernel": "/k", "metrics": {"labels": good}}, "it").metrics.labels == good


@pytest.mark.parametrize("target", ["fd:root", "fd:Root.img-1_", "fd:" + "x" * 64])
def test_a_disk_by_descriptor(target: str) -> None:
    assert DiskConfig(vdev="xvda", target=target).target == target


@pytest.mark.parametrize(
    "target", ["fd:", "fd:a b", "fd:/x", "fd:-x", "fd:" + "x" * 65, "FD:x", "fd:x\n", "x"]
)
def test_no_descriptor_and_no_path(target: str) -> None:
    disk = {"vdev": "xvda", "target": target}
    with pytest.raises(
        BadConfig, match=r"disk\.0\.target: it must be an absolute path, fd:NAME, nbd://HOST/EXPORT or "
    ):
        parse({"kernel": "/k", "disk": [disk]}, "it")


@pytest.mark.parametrize(
    ("disk", "needs"),
    [
        ({"target": "/a"}, False),
        ({"target": "/a", "format": "qcow2"}, True),
        ({"target": "nbd+unix:///a?socket=/s"}, True),
        ({"device": "cdrom", "format": "qcow2"}, False),
    ],
)
def test_which_images_need_an_engine(disk: dict[str, Any], needs: bool) -> None:
    assert DiskConfig.model_validate({"vdev": "xvda", **disk}).needs_engine is needs
