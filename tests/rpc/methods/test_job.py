"""Jobs as a client sees them."""

from __future__ import annotations

import threading

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd.errors import HostError
from xenpvd.jobs import Work


def counting(go: threading.Event) -> Work:
    """Two steps of three; the second ends with ``go``."""
    yield 1
    go.wait(10)
    yield 2
    return {"file": "/srv/a"}


async def test_a_job_from_begin_to_end(peer: Peer, service: FakeService) -> None:
    go = threading.Event()
    await peer.result("events.subscribe", names=["job.*"])
    service.jobs.start("guest.dump", counting(go), 3, "bytes")
    begun = await peer.note("event")
    assert (begun["name"], begun["data"]) == (
        "job.status", {"job": 1, "kind": "guest.dump", "state": "running", "error": None}
    )  # fmt: skip
    progress = await peer.note("event")
    assert (progress["name"], progress["data"]) == (
        "job.progress", {"job": 1, "done": 1, "total": 3, "unit": "bytes"}
    )  # fmt: skip
    await peer.result("events.unsubscribe")
    (listed,) = await peer.result("job.list")
    assert (listed["state"], listed["ended"], listed["result"]) == ("running", None, None)
    late = await peer.fault("job.wait", job=1, timeout=0)
    assert late["code"] == 1005 and late["data"]["job"] == 1
    go.set()
    done = await peer.result("job.wait", job=1)
    assert (done["state"], done["result"], done["error"]) == ("done", {"file": "/srv/a"}, None)
    assert done["progress"] == {"done": 3, "total": 3, "unit": "bytes"}
    assert await peer.result("job.get", job=1) == done
    assert await peer.result("job.cancel", job=1) == done, "too late, and it says so"


async def test_one_that_fails_has_the_error_of_a_reply(peer: Peer, service: FakeService) -> None:
    def fail() -> Work:
        yield 1
        raise HostError("cannot write /a: No space left on device. Make room.", 28, "/a")

    def break_() -> Work:
        yield 1
        raise ZeroDivisionError("of ours")

    for work in (fail, break_):
        service.jobs.start("guest.dump", work(), 3, "bytes")
    failed = await peer.result("job.wait", job=1)
    assert (failed["state"], failed["result"], failed["progress"]["done"]) == ("failed", None, 1)
    assert failed["error"] == {
        "code": 1021,
        "message": "cannot write /a: No space left on device. Make room.",
        "data": {"reason": "HOST_IO", "errno": 28, "path": "/a"},
    }
    ours = (await peer.result("job.wait", job=2))["error"]
    assert ours["code"] == -32603 and "of ours" not in str(ours)


async def test_cancel(peer: Peer, service: FakeService) -> None:
    go = threading.Event()
    service.jobs.start("guest.dump", counting(go), 3, "bytes")
    assert (await peer.fault("job.cancel", job=1, timeout=0))["data"]["reason"] == "TIMEOUT"
    go.set()
    assert (await peer.result("job.cancel", job=1))["state"] == "cancelled"
    missing = await peer.fault("job.get", job=2)
    assert missing["data"] == {"reason": "NOT_FOUND", "kind": "job", "name": "2"}
