from __future__ import annotations

import pytest

from xenpvd.backends.xenstore import path as paths
from xenpvd.errors import XenError

HOME = "/local/domain/1"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/"),
        (b"/a", "/a"),
        (b"/a-b/C_9/x@y", "/a-b/C_9/x@y"),
        (b"data/x", "/local/domain/1/data/x"),
        (b"/" + b"a" * 2047, "/" + "a" * 2047),
        (b"a" * 2048, HOME + "/" + "a" * 2048),
        (b"/local/domain/65535/" + b"a" * 2048, "/local/domain/65535/" + "a" * 2048),
        (b"/local/domain/x", "/local/domain/x"),
    ],
)
def test_paths(raw: bytes, path: str):
    assert paths.canonical(raw, HOME, 2048) == path


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b".", b"//", b"/a//b", b"/a/", b"a/", b"/a%b", b"/a b", b"/a\n", b"/\x80", b"/\xc3\xa9"),
        *(b"/local/domain/", b"@introduceDomain", b"@"),
        *(b"a" * 2049, b"/" + b"a" * 2048, b"/local/domain/123456/" + b"a" * 2048),
    ],
)
def test_no_paths(raw: bytes):
    with pytest.raises(XenError, match="Invalid argument"):
        paths.canonical(raw, HOME, 2048)


def test_the_wire_limit_holds_for_everybody():
    paths.canonical(b"/" + b"a" * 3071, HOME, 1 << 62)
    with pytest.raises(XenError):
        paths.canonical(b"/" + b"a" * 3072, HOME, 1 << 62)


def test_special_names_where_they_are_allowed():
    assert paths.canonical(b"@releaseDomain/1", HOME, 2048, special=True) == "@releaseDomain/1"


@pytest.mark.parametrize(
    ("path", "upwards"),
    [
        ("/", ["/"]),
        ("/a", ["/a", "/"]),
        ("/a/b", ["/a/b", "/a", "/"]),
        ("@releaseDomain/1", ["@releaseDomain/1", "@releaseDomain"]),
    ],
)
def test_upwards(path: str, upwards: list[str]):
    assert list(paths.upwards(path)) == upwards


def test_relatives():
    assert (paths.parent("/a/b"), paths.parent("/a"), paths.parent("/"), paths.parent("@x")) == (
        "/a",
        "/",
        "/",
        "/",
    )
    assert (paths.child("/", "a"), paths.child("/a", "b"), paths.name("/a/b")) == ("/a", "/a/b", "b")
