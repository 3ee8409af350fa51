"""What an image can be, what it must not bring along, and how the engine is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fakes.engine import SIZE, make_image, needs_engine
from xenpvd.backends.blkif import formats
from xenpvd.backends.blkif.formats import Misfit


def check(path: Path, form: str) -> None:
    data = path.read_bytes()
    formats.check(form, lambda offset, count: data[offset : offset + count], len(data))


@needs_engine
@pytest.mark.parametrize("form", formats.FORMATS)
def test_an_image_is_known(tmp_path: Path, form: str) -> None:
    check(make_image(tmp_path / "disk", form), form)


@needs_engine
@pytest.mark.parametrize("form", formats.FORMATS)
def test_another_is_refused(tmp_path: Path, form: str) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(SIZE))
    others = [make_image(tmp_path / other, other) for other in formats.FORMATS if other != form]
    for path in (raw, *others):
        with pytest.raises(Misfit, match=f"it is no {form} image"):
            check(path, form)


@pytest.mark.parametrize("form", formats.FORMATS)
@pytest.mark.parametrize("data", [b"", b"QFI\xfb", b"KDMV", b"vhdxfil", b"conectix"])
def test_what_is_cut_off_is_refused(tmp_path: Path, form: str, data: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(data)
    with pytest.raises(Misfit):
        check(path, form)


@needs_engine
@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        ("qcow2", ["-b", "/etc/passwd", "-F", "raw", "-u"], "a backing file"),
        ("qcow2", ["-o", "data_file=DATA,data_file_raw=on"], "an external data file"),
        ("vmdk", ["-o", "subformat=monolithicFlat"], "extents in other files"),
        ("vmdk", ["-o", "subformat=twoGbMaxExtentSparse"], "extents in other files"),
        ("vmdk", ["-b", "PARENT", "-F", "vmdk"], "a parent"),
        (
            "qcow2",
            ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s"],
            "encrypted",
        ),
    ],
)
def test_an_image_brings_no_other_files(tmp_path: Path, form: str, options: list[str], words: str) -> None:
    parent = make_image(tmp_path / "parent", "vmdk")
    options = [o.replace("DATA", f"{tmp_path / 'data'}").replace("PARENT", f"{parent}") for o in options]
    path = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", form, *options, path, str(SIZE)], check=True)
    with pytest.raises(Misfit, match=words):
        check(path, form)


def test_a_differencing_vpc_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512) + b"conectix" + bytes(55) + b"\x04" + bytes(448))
    with pytest.raises(Misfit, match="a parent"):
        check(path, "vpc")


@pytest.mark.parametrize(
    ("target", "server", "export"),
    [
        ("nbd://host:1/e", {"type": "inet", "host": "host", "port": "1"}, "e"),
        ("nbd://[::1]/a%20b", {"type": "inet", "host": "::1", "port": "10809"}, "a b"),
        ("nbd://host", {"type": "inet", "host": "host", "port": "10809"}, None),
        ("nbd://host:/", {"type": "inet", "host": "host", "port": "10809"}, None),
        ("nbd+unix:///e?socket=/run/n", {"type": "unix", "path": "/run/n"}, "e"),
        ("nbd+unix://?socket=/run/n", {"type": "unix", "path": "/run/n"}, None),
    ],
)
def test_addresses(target: str, server: dict[str, str], export: str | None) -> None:
    assert formats.is_remote(target)
    node = formats.nbd(target)
    assert node["server"] == server and node.get("export") == export


@pytest.mark.parametrize(
    "target",
    [
        "nbd:///e", "nbd://host:port/e", "nbd://host:99999/", "nbd://host/e?socket=/x", "nbd://u@host/e",
        "nbd+unix:///e", "nbd+unix:///e?socket=x", "nbd+unix://host/e?socket=/x", "nbd+unix:///e?socket=/x&a=b",
        "nbd://[/e", "nbd://host:0/e", "nbd://host:00/", "nbd://[::1]:0", "nbd://host:-1/",
    ],
)  # fmt: skip
def test_what_is_no_address(target: str) -> None:
    with pytest.raises(Misfit) as caught:
        formats.nbd(target)
    assert "nbd://HOST:PORT/EXPORT" in caught.value.cure


def test_nodes() -> None:
    storage, disk = formats.nodes({"driver": "file"}, "qcow2", readonly=True)
    assert storage["node-name"] == disk["file"] and disk["node-name"] == "disk"
    assert storage["read-only"] is disk["read-only"] is True
    assert "backing" in disk and disk["backing"] is None, "whatever the image says"
    assert storage["cache"] == disk["cache"] == {"direct": False, "no-flush": False}
    assert formats.keeps_to_itself("qcow2") and not formats.keeps_to_itself("raw")
