"""Disk specifications, in all the ways in which they were ever written."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.ctl.xl_disk import XlDisk, parse
from xenpvd.ctl.xl_syntax import XlFault

VG = {"target": "/dev/vg/guest-volume", "vdev": "hda"}
ISO = {"target": "/root/image.iso", "vdev": "hdc", "cdrom": True}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # xl-disk-configuration.5 calls these equivalent
        ("/dev/vg/guest-volume,,hda", VG),
        ("/dev/vg/guest-volume,raw,hda,rw", VG | {"format": "raw"}),
        ("format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume", VG | {"format": "raw"}),
        ("raw:/dev/vg/guest-volume,hda,w", VG | {"format": "raw"}),
        # and these
        ("/root/image.iso,,hdc,cdrom", ISO),
        ("/root/image.iso,,hdc,,cdrom", ISO),
        ("/root/image.iso,raw,hdc,devtype=cdrom", ISO | {"format": "raw"}),
        (
            "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
            ISO | {"format": "raw", "readonly": True},
        ),
        ("raw:/root/image.iso,hdc:cdrom,ro", ISO | {"format": "raw", "readonly": True}),
        # prefixes of xend's time
        ("phy:/dev/vg0/web1,xvda,w", {"target": "/dev/vg0/web1", "vdev": "xvda"}),
        ("phy:vg0/web1,xvda1,r", {"target": "vg0/web1", "vdev": "xvda1", "readonly": True}),
        ("phy:sda1,sda1,w", {"target": "sda1", "vdev": "sda1"}),
        ("file:/srv/web1.img,xvda,w", {"target": "/srv/web1.img", "vdev": "xvda"}),
        ("tap:aio:/srv/web1.img,xvda,w", {"target": "/srv/web1.img", "vdev": "xvda"}),
        ("tap2:tapdisk:aio:/srv/a.img,xvda,w", {"target": "/srv/a.img", "vdev": "xvda"}),
        ("tap:qcow2:/srv/a.qcow2,xvda,w", {"target": "/srv/a.qcow2", "vdev": "xvda", "format": "qcow2"}),
        ("phy:/dev/vg/x,ioemu:hda,w", {"target": "/dev/vg/x", "vdev": "hda"}),
        ("phy:/dev/vg/x,xvda:disk,w", {"target": "/dev/vg/x", "vdev": "xvda"}),
        ("phy:/dev/vg/x,xvda,w!", {"target": "/dev/vg/x", "vdev": "xvda", "shared": True}),
        (",hdc:cdrom,r", {"vdev": "hdc", "cdrom": True, "readonly": True}),
        ("nbd:host:10809,xvde,w", {"target": "host:10809", "vdev": "xvde", "script": "block-nbd"}),
        # the target that takes the rest
        ("vdev=xvda,target=/srv/a, b=c.img", {"target": "/srv/a, b=c.img", "vdev": "xvda"}),
        (",,xvda,target=/srv/a.img", {"target": "/srv/a.img", "vdev": "xvda"}),
        # others
        ("/srv/a.img,qcow2,xvda,r,no-discard", {"target": "/srv/a.img", "vdev": "xvda", "format": "qcow2",
                                               "readonly": True, "discard": False}),
        ("vdev=xvda, trusted, no-colo, grant_usage=0, target=/a", {"target": "/a", "vdev": "xvda"}),
        ("script=block-drbd,vdev=xvda,target=a", {"target": "a", "vdev": "xvda", "script": "block-drbd"}),
        ("/dev/x,,xvda,backend=store", {"target": "/dev/x", "vdev": "xvda", "backend": "store"}),
        ("/dev/x,,xvda,backend=0", {"target": "/dev/x", "vdev": "xvda"}),
    ],
)  # fmt: skip
def test_what_it_says(text: str, expected: dict[str, Any]) -> None:
    assert asdict(parse(text)) == asdict(XlDisk()) | expected


def test_what_is_left_out() -> None:
    text = "/a,raw,xvda,backendtype=qdisk,specification=virtio,direct-io-safe,untrusted,colo,colo-host=x"
    assert [what for what, _ in parse(text).left_out] == [
        "backendtype=qdisk", "specification=virtio", "direct-io-safe", "untrusted", "colo", "colo-host",
    ]  # fmt: skip
    assert parse("/a,raw,xvda,specification=xen").left_out == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it does not say what the guest shall call it (xvda)"),
        ("/srv/a.img", "it does not say what the guest shall call it (xvda)"),
        (",,xvda", "it has no target"),
        ("/srv/a.img,bochs,xvda", "there is no format bochs"),
        ("raw:/srv/a.img,format=vhd,xvda", "it is raw and vhd at once"),
        ("/srv/a.img,,xvda,x", "there is no access x"),
        ("/srv/a.img,,xvda,w,w", "what is 'w' at its end?"),
        ("/srv/a.img,,xvda:tape", "there is no kind of disk tape"),
        ("/srv/a.img,,xvda,devtype=tape", "there is no devtype tape"),
        ("/srv/a.img,,xvda,colour=red", "there is no parameter colour"),
        ("/srv/a.img,,xvda,vdev=xvdb", "vdev is there twice"),
        ("/srv/a.img,,xvda,target=/b", "target is there twice"),
        ("/srv/a=b.img,,xvda", "a path with an = in it comes last, as target=PATH"),
        ("rbd:/pool/image,xvda,w", "there is no prefix rbd:"),
    ],
)
def test_what_cannot_be(text: str, why: str) -> None:
    with pytest.raises(XlFault) as caught:
        parse(text)
    assert str(caught.value) == f"disk {text!r}: {why}."


_WORDS = st.sampled_from(
    [
        *",,,=: ",
        "file:",
        "qcow2:",
        "nbd:",
        "x:",
        "target=",
        "vdev=",
        "cdrom",
        "xvda",
        "/a",
        "raw",
        "ro",
        "a=b",
    ]
)


@given(st.one_of(st.text(), st.lists(_WORDS).map("".join)))
def test_any_text_is_a_disk_or_refused(text: str) -> None:
    try:
        disk = parse(text)
    except XlFault as fault:
        assert str(fault).startswith("disk ")
    else:
        assert disk.vdev and (disk.target or disk.cdrom)
