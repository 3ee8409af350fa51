"""Block nodes and disks: added, told of, changed, removed; and refused before anything happens."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from tests.rpc.qmp.conftest import Peer
from xenpvd.backends.blkif.formats import nbd
from xenpvd.config import DiskConfig
from xenpvd.errors import ImageError, StateError, TimedOut
from xenpvd.rpc.qmp.names import NODES_MAX
from xenpvd.rpc.qmp.params import FileParams
from xenpvd.rpc.qmp.server import QmpServer
from xenpvd.views import DescriptorInfo

GENERIC = "GenericError"


async def add_node(peer: Peer, image: Path, name: str = "n0", **more: Any) -> None:
    assert (
        await peer.execute("blockdev-add", driver="file", filename=str(image), **{"node-name": name, **more})
        == {}
    )


async def add_disk(peer: Peer, image: Path, id_: str = "data", vdev: str = "xvdb") -> None:
    await add_node(peer, image)
    assert await peer.execute("device_add", driver="xen-disk", id=id_, vdev=vdev, drive="n0") == {}


async def test_a_disks_life(peer: Peer, service: FakeService, image: Path) -> None:
    await add_disk(peer, image)
    assert service.asked_for["xvdb"] == DiskConfig(vdev="xvdb", target=str(image), discard=False)
    assert "in use by data" in (await peer.refused("blockdev-del", **{"node-name": "n0"}))[1]
    (disk,) = await peer.execute("query-block")
    assert (disk["qdev"], disk["inserted"]["node-name"], disk["inserted"]["file"]) == (
        "data",
        "n0",
        str(image),
    )
    assert await peer.execute("device_del", id="data") == {}
    assert await peer.event("DEVICE_DELETED") == {"device": "data", "path": "/machine/peripheral/data"}
    assert await peer.execute("query-block") == []
    assert await peer.execute("blockdev-del", **{"node-name": "n0"}) == {}
    assert await peer.execute("query-named-block-nodes") == []


async def test_a_format_over_a_file(peer: Peer, service: FakeService, image: Path) -> None:
    """As programs define it for QEMU: in one go, or layer by layer."""
    file = {"driver": "file", "node-name": "file0", "filename": str(image), "discard": "unmap"}
    await peer.execute(
        "blockdev-add", driver="raw", file=file, discard="unmap", **{"node-name": "fmt0", "read-only": True}
    )
    nodes = await peer.execute("query-named-block-nodes")
    assert [(node["node-name"], node["drv"], node["ro"]) for node in nodes] == [
        ("file0", "file", False),
        ("fmt0", "raw", True),
    ]
    assert nodes[1]["image"] == {"filename": str(image), "format": "raw", "virtual-size": 8192}
    await peer.execute("device_add", driver="xen-disk", id="d", vdev="xvdb", drive="fmt0")
    disk = service.asked_for["xvdb"]
    assert (disk.access, disk.discard) == ("ro", True)
    await peer.execute("block_resize", size=4 << 20, **{"node-name": "file0"})
    assert service.drives["xvdb"].size == 4 << 20
    await peer.execute("device_del", id="d")
    await peer.event("DEVICE_DELETED")
    assert "belongs to fmt0" in (await peer.refused("blockdev-del", **{"node-name": "file0"}))[1]
    await peer.execute("blockdev-del", **{"node-name": "fmt0"})
    assert await peer.execute("query-named-block-nodes") == []

    await add_node(peer, image, "file0")
    await peer.execute("blockdev-add", driver="raw", file="file0", **{"node-name": "fmt0"})
    assert "in use by fmt0" in (await peer.refused("blockdev-del", **{"node-name": "file0"}))[1]
    again = await peer.refused("blockdev-add", driver="raw", file="file0", **{"node-name": "fmt1"})
    assert "in use by fmt0" in again[1]
    await peer.execute("blockdev-del", **{"node-name": "fmt0"})
    await peer.execute("blockdev-del", **{"node-name": "file0"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "node-name: it is missing"),
        (
            {"driver": "luks", "filename": "/x"},
            "driver: it must be 'file', 'host_device', 'nbd', 'raw', 'qcow2'",
        ),
        ({"driver": "qcow2", "filename": "/x"}, "a format has a file"),
        ({"driver": "file"}, "file and host_device have a filename"),
        ({"driver": "raw"}, "a format has a file"),
        ({"driver": "raw", "filename": "/x"}, "a format has a file"),
        ({"driver": "nbd", "filename": "/x"}, "nbd has a server"),
        ({"driver": "nbd", "server": {"type": "fd", "str": "x"}}, "server: 'type' must be one of"),
        *(
            ({"driver": "nbd", "server": {"type": "inet", "host": host, "port": "1"}}, "server.inet.host: it")
            for host in ("a/b", "", ":", "a:b", "[::1]", "::1%x", "a\n")
        ),
        *(
            ({"driver": "nbd", "server": {"type": "inet", "host": "a", "port": port}}, "server.inet.port: it")
            for port in ("", "0", "65536", "nbd", "1\n", "-1")
        ),
        (
            {"driver": "nbd", "server": {"type": "unix", "path": "x"}},
            "server.unix.path: it must be an absolute",
        ),
        ({"driver": "file", "filename": "/x", "export": "e"}, "only nbd has an export"),
        ({"driver": "raw", "file": "nothing"}, "no block node 'nothing'"),
        ({"driver": "raw", "file": {"driver": "file"}}, "file.node: "),
        ({"driver": "raw", "file": {"driver": "file", "filename": "/x", "y": 1}}, "file.node.y: there is no"),
        ({"driver": "file", "filename": "relative.img"}, "filename: it must be an absolute path"),
        ({"driver": "file", "filename": "nbd://host/e"}, "filename: it must be an absolute path, or fd:NAME"),
        ({"driver": "file", "filename": "fd:a b"}, "filename: it must be an absolute path, or fd:NAME"),
        ({"driver": "file", "filename": "fd:none"}, "no descriptor none. By rpc.sock, fd.add gives it one"),
        ({"driver": "file", "filename": "/nowhere/x"}, "/nowhere/x: No such file"),
        ({"driver": "file", "filename": "/"}, "no regular file and no block device"),
        ({"driver": "file", "filename": "/dev/null"}, "no regular file and no block device"),
        ({"driver": "file", "filename": "/x", "cache": {"no-flush": True}}, "cache.no-flush: "),
        ({"driver": "file", "filename": "/x", "x-check-cache-dropped": True}, "there is no such key"),
        ({"driver": "file", "filename": "/x", "node-name": "#auto"}, "node-name: "),
    ],
)
async def test_nodes_that_cannot_be(peer: Peer, arguments: dict[str, Any], says: str) -> None:
    if arguments:
        arguments = {"node-name": "n0", **arguments}
    class_, desc = await peer.refused("blockdev-add", **arguments)
    assert class_ == GENERIC and says in desc
    assert await peer.execute("query-named-block-nodes") == []


FORMATS = ("qcow2", "vmdk", "vdi", "vhdx", "vpc")


def test_drivers_are_our_formats() -> None:
    drivers = get_args(FileParams.model_fields["driver"].annotation)
    assert drivers == ("file", "host_device", "nbd", *get_args(DiskConfig.model_fields["format"].annotation))
    assert drivers[4:] == FORMATS


@pytest.mark.parametrize("form", FORMATS)
async def test_images_of_other_formats(peer: Peer, service: FakeService, image: Path, form: str) -> None:
    await add_node(peer, image, "file0")
    await peer.execute("blockdev-add", driver=form, file="file0", **{"node-name": "fmt0"})
    nodes = await peer.execute("query-named-block-nodes")
    assert [(node["node-name"], node["drv"]) for node in nodes] == [("file0", "file"), ("fmt0", form)]
    await peer.execute("device_add", driver="xen-disk", vdev="xvdb", drive="fmt0")
    assert service.asked_for["xvdb"] == DiskConfig(vdev="xvdb", target=str(image), format=form, discard=False)
    (disk,) = await peer.execute("query-block")
    assert (disk["inserted"]["drv"], disk["inserted"]["image"]["virtual-size"]) == (form, 1 << 20)


async def test_a_format_is_there_once(peer: Peer, service: FakeService, image: Path) -> None:
    file = {"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}}
    again = await peer.refused("blockdev-add", driver="vdi", file=file, **{"node-name": "n0"})
    assert "#n0.file is qcow2. Give its file." in again[1]
    direct = {"driver": "file", "filename": str(image), "cache": {"direct": True}}
    past = await peer.refused("blockdev-add", driver="qcow2", file=direct, **{"node-name": "n0"})
    assert "cache: it is writeback for images of other formats" in past[1]
    assert await peer.execute("query-named-block-nodes") == []
    await peer.execute("blockdev-add", driver="raw", file=file, **{"node-name": "n0"})  # as it is
    await peer.execute("device_add", driver="xen-disk", vdev="xvdb", drive="n0")
    assert service.asked_for["xvdb"].format == "qcow2"


async def test_a_descriptor(peer: Peer, service: FakeService) -> None:
    service.descriptors["data"] = DescriptorInfo("data", "file", "rw", 4096)
    arguments: dict[str, Any] = {"driver": "file", "filename": "fd:data", "node-name": "n0"}
    past = await peer.refused("blockdev-add", **arguments, cache={"direct": True})
    assert "cache: it is writeback or writethrough for fd:NAME" in past[1]
    await peer.execute("blockdev-add", **arguments)
    assert (
        "a descriptor is of a raw image"
        in (await peer.refused("blockdev-add", driver="qcow2", file="n0", **{"node-name": "n1"}))[1]
    )
    (node,) = await peer.execute("query-named-block-nodes")
    assert (node["file"], node["image"]["virtual-size"]) == ("fd:data", 4096)
    await peer.execute("device_add", driver="xen-disk", vdev="xvdb", drive="n0")
    assert service.asked_for["xvdb"] == DiskConfig(vdev="xvdb", target="fd:data", discard=False)


@pytest.mark.parametrize(
    ("address", "export", "target"),
    [
        ({"type": "inet", "host": "store", "port": "10809"}, "a b/é", "nbd://store:10809/a%20b%2F%C3%A9"),
        ({"type": "inet", "host": "::1", "port": "1"}, "e", "nbd://[::1]:1/e"),
        ({"type": "unix", "path": "/run/n+ &b"}, "e", "nbd+unix:///e?socket=/run/n%2B%20%26b"),
        ({"type": "unix", "path": "/run/n"}, None, "nbd+unix:///?socket=/run/n"),
    ],
)
async def test_what_an_nbd_server_has(
    peer: Peer, service: FakeService, address: dict[str, str], export: str | None, target: str
) -> None:
    more = {} if export is None else {"export": export}
    await peer.execute("blockdev-add", driver="nbd", server=address, **{"node-name": "n0"}, **more)
    await peer.execute("device_add", driver="xen-disk", vdev="xvdb", drive="n0")
    assert service.asked_for["xvdb"].target == target
    found = nbd(target)  # as the engine is told
    assert (found["server"], found.get("export")) == (address, export)


async def test_a_node_past_the_page_cache(peer: Peer, image: Path, service: FakeService) -> None:
    inner = {"driver": "file", "filename": str(image), "cache": {"direct": True}}
    await peer.execute("blockdev-add", driver="raw", file=inner, **{"node-name": "n0"})
    await peer.execute("device_add", driver="xen-disk", vdev="xvdb", drive="n0")
    assert service.asked_for["xvdb"].cache == "none"
    for node in await peer.execute("query-named-block-nodes"):
        assert node["cache"] == {"writeback": True, "direct": True, "no-flush": False}
    await add_node(peer, image, "n1")
    await peer.execute("device_add", driver="xen-disk", vdev="xvdc", drive="n1")
    assert service.asked_for["xvdc"].cache == "writeback"


async def test_nodes_are_bounded(peer: Peer, image: Path) -> None:
    for n in range(NODES_MAX):
        await add_node(peer, image, f"n{n}")
    arguments = {"driver": "file", "node-name": "more", "filename": str(image)}
    assert "there may be 256" in (await peer.refused("blockdev-add", **arguments))[1]
    await peer.execute("blockdev-del", **{"node-name": "n7"})
    await add_node(peer, image, "more")


async def test_a_fifo_holds_nobody_up(peer: Peer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    arguments = {"driver": "file", "node-name": "n0", "filename": str(tmp_path / "fifo")}
    assert "no regular file" in (await peer.refused("blockdev-add", **arguments))[1]


async def test_names_are_there_once(peer: Peer, image: Path, service: FakeService) -> None:
    await add_disk(peer, image)
    arguments = {"driver": "file", "node-name": "n0", "filename": str(image)}
    assert "there is one already" in (await peer.refused("blockdev-add", **arguments))[1]
    assert (await peer.refused("blockdev-del", **{"node-name": "n1"}))[0] == GENERIC
    await add_node(peer, image, "n1")
    for id_, vdev in (("data", "xvdc"), ("other", "xvdb"), ("xvdb", "xvdc"), (None, "xvdb")):
        wanted = {"driver": "xen-disk", "vdev": vdev, "drive": "n1", **({"id": id_} if id_ else {})}
        assert "already. Choose another" in (await peer.refused("device_add", **wanted))[1]
    taken = await peer.refused("device_add", driver="xen-disk", vdev="xvdc", drive="n0")
    assert "in use by data" in taken[1]
    assert list(service.drives) == ["xvdb"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"driver": "virtio-net-pci", "netdev": "n"}, "there are xen-disk and xen-cdrom"),
        ({"driver": "xen-disk", "drive": "n0"}, "vdev: it is missing"),
        ({"driver": "xen-disk", "vdev": "xvdb"}, "drive is missing"),
        ({"driver": "xen-disk", "vdev": "xvdb", "drive": "n1"}, "no block node 'n1'"),
        ({"driver": "xen-disk", "vdev": "vda", "drive": "n0"}, "vdev: it must be a disk's name"),
        ({"driver": "xen-disk", "vdev": "xvdb", "drive": "n0", "iothread": "t"}, "iothread: there is no"),
        ({"driver": "xen-disk", "vdev": "xvdb", "drive": "n0", "logical_block_size": 513}, "logical_block"),
    ],
)
async def test_devices_that_cannot_be(
    peer: Peer, service: FakeService, image: Path, arguments: dict[str, Any], says: str
) -> None:
    await add_node(peer, image)
    class_, desc = await peer.refused("device_add", **arguments)
    assert class_ == GENERIC and says in desc
    assert service.drives == {}


async def test_a_device_that_fails_leaves_no_name(peer: Peer, service: FakeService, image: Path) -> None:
    await add_node(peer, image)
    service.faults["drive_add"] = ImageError("cannot open it: it is locked.", str(image))
    wanted = {"driver": "xen-disk", "id": "data", "vdev": "xvdb", "drive": "n0"}
    assert await peer.refused("device_add", **wanted) == (GENERIC, "cannot open it: it is locked.")
    service.faults.clear()
    assert await peer.execute("device_add", **wanted) == {}


async def test_two_clients_want_one_id(
    server: QmpServer, path: Path, peer: Peer, service: FakeService, image: Path
) -> None:
    await add_node(peer, image, "n0")
    await add_node(peer, image, "n1")
    other = await Peer.negotiated(path)
    gate = service.hold("drive_add")
    peer.command("device_add", {"driver": "xen-disk", "id": "d", "vdev": "xvdb", "drive": "n0"})
    await gate.entered.wait()
    wanted = {"driver": "xen-disk", "id": "d", "vdev": "xvdc", "drive": "n1"}
    assert "already" in (await other.refused("device_add", **wanted))[1]
    gate.open.set()
    assert (await peer.reply())["return"] == {}
    await other.close()


async def test_a_cdrom_may_be_empty(peer: Peer, service: FakeService) -> None:
    await peer.execute("device_add", driver="xen-cdrom", vdev="xvdd")
    assert service.asked_for["xvdd"].device == "cdrom"
    (disk,) = await peer.execute("query-block")
    assert disk["removable"] and "inserted" not in disk
    assert await peer.execute("query-named-block-nodes") == []


async def test_disks_made_elsewhere_go_by_their_vdev(peer: Peer, service: FakeService, image: Path) -> None:
    await service.drive_add(DiskConfig(vdev="xvda", target="/srv/root.img", access="ro"), False, 1)
    (disk,) = await peer.execute("query-block")
    assert (disk["qdev"], disk["inserted"]["node-name"]) == ("xvda", "#xvda")
    assert disk["inserted"]["ro"]
    (node,) = await peer.execute("query-named-block-nodes", flat=True)
    assert (node["node-name"], node["image"]["virtual-size"]) == ("#xvda", 1 << 20)
    await peer.execute("block_resize", size=4 << 20, **{"node-name": "#xvda"})
    await peer.execute("device_del", id="xvda")
    assert (await peer.event("DEVICE_DELETED"))["device"] == "xvda"


async def test_removal_by_rpc_is_told_by_the_devices_id(
    peer: Peer, service: FakeService, image: Path
) -> None:
    await add_disk(peer, image)
    await service.drive_remove("xvdb", False, False, 1)
    assert (await peer.event("DEVICE_DELETED"))["device"] == "data"
    await peer.execute("blockdev-del", **{"node-name": "n0"})


async def test_a_guest_that_does_not_let_go(peer: Peer, service: FakeService, image: Path) -> None:
    assert (await peer.refused("device_del", id="data"))[0] == "DeviceNotFound"
    await add_disk(peer, image)
    gate = service.hold("drive_remove")
    await peer.execute("device_del", id="data")
    assert "asked already" in (await peer.refused("device_del", id="xvdb"))[1]

    async def late(*_: Any) -> bool:
        await gate.open.wait()
        raise TimedOut("the guest does not let go of xvdb.")

    gate.open.set()
    await peer.event("DEVICE_DELETED")
    await add_disk_again(peer)
    gate.open.clear()
    service.drive_remove = late  # type: ignore[assignment, method-assign]
    await peer.execute("device_del", id="data")
    gate.open.set()
    assert await peer.event("DEVICE_UNPLUG_GUEST_ERROR") == {
        "device": "data",
        "path": "/machine/peripheral/data",
    }
    assert len(await peer.execute("query-block")) == 1


async def add_disk_again(peer: Peer) -> None:
    await peer.execute("device_add", driver="xen-disk", id="data", vdev="xvdb", drive="n0")


async def test_a_removal_that_cannot_be_is_refused(peer: Peer, service: FakeService, image: Path) -> None:
    await add_disk(peer, image)
    service.faults["drive_remove"] = StateError("cannot remove xvdb: the guest is paused.", "paused", [])
    assert await peer.refused("device_del", id="data") == (
        GENERIC,
        "cannot remove xvdb: the guest is paused.",
    )
    service.faults.clear()
    await peer.execute("device_del", id="data")
    await until(lambda: not service.drives)


async def test_resize(peer: Peer, service: FakeService, image: Path) -> None:
    await add_disk(peer, image)
    for how in ({"device": "data"}, {"device": "xvdb"}, {"node-name": "n0"}):
        await peer.execute("block_resize", size=service.drives["xvdb"].size * 2, **how)
    assert service.drives["xvdb"].size == 8 << 20
    assert "drive.resize with shrink" in (await peer.refused("block_resize", device="data", size=512))[1]
    assert (await peer.refused("block_resize", device="xvdz", size=512))[0] == "DeviceNotFound"
    assert (await peer.refused("block_resize", size=512, **{"node-name": "n9"}))[0] == GENERIC
    assert "exactly one" in (await peer.refused("block_resize", size=512))[1]
    assert (await peer.refused("block_resize", device="data", size=-1))[0] == GENERIC


async def test_throttle(peer: Peer, service: FakeService, image: Path) -> None:
    await add_disk(peer, image)
    none = dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
    assert await peer.execute("block_set_io_throttle", id="data", bps=10 << 20, iops=500, **none) == {}
    (disk,) = await peer.execute("query-block")
    assert {key: disk["inserted"][key] for key in ("bps", "bps_rd", "iops")} == {
        "bps": 10 << 20,
        "bps_rd": 0,
        "iops": 500,
    }
    wanted = {**none, "bps": 0, "iops": 0, "iops_rd": 5}
    assert "iops_rd: " in (await peer.refused("block_set_io_throttle", id="data", **wanted))[1]
    assert service.drives["xvdb"].limits.ops_per_second == 500


async def test_an_image_whose_storage_hangs(peer: Peer, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*_: Any) -> int:
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr("xenpvd.rpc.qmp.block.in_thread", hangs)
    monkeypatch.setattr(FakeService, "fd_list", hangs)
    monkeypatch.setattr("xenpvd.rpc.qmp.block.OPEN_TIME", 0.05)
    for filename in (str(image), "fd:root"):
        arguments = {"driver": "file", "node-name": "n0", "filename": filename}
        assert "it has not opened in time" in (await peer.refused("blockdev-add", **arguments))[1]
