"""What events there are, for the API's document and the manual: what each means, and has in ``data``."""

from __future__ import annotations

from typing import NamedTuple


class Happening(NamedTuple):
    summary: str
    data: tuple[str, ...] = ()


EVENTS = {
    "daemon.ready": Happening("The daemon serves its socket."),
    "daemon.reloaded": Happening(
        "The definition's file was read anew: what of it counts now, what waits for the next start, and what "
        "only a new daemon takes.",
        ("applied", "next_start", "next_daemon"),
    ),
    "daemon.stopping": Happening("The daemon ends."),
    "guest.state": Happening("The guest's state has changed.", ("from", "to", "reason")),
    "guest.boot": Happening(
        "The boot has come to phase created, shim, kernel, xenbus or devices, seconds after this VM's begin.",
        ("phase", "seconds"),
    ),
    "guest.shutdown": Happening(
        "The guest has taken a wish to shut down, acknowledged seconds after it was told.",
        ("mode", "acknowledged"),
    ),
    "guest.crash": Happening(
        "The guest is over, for the reason crash (it said so itself), watchdog (it did not feed its Xen "
        "watchdog) or fault (it cannot be run any further). The tails are the last lines of its console and "
        "of Xen's log.",
        ("reason", "detail", "regs", "console_tail", "xen_tail"),
    ),
    "memory.target": Happening(
        "Another size of the VM was asked for, or the guest has come to it.", ("asked_mib", "reached_mib")
    ),
    "drive.added": Happening("A disk is there.", ("vdev", "devid", "target", "access", "size")),
    "drive.state": Happening(
        "An end of a disk has changed its XenbusState.", ("vdev", "backend", "frontend")
    ),
    "drive.resized": Happening("A disk has another size, in bytes.", ("vdev", "size")),
    "drive.changed": Happening(
        "Another image is behind a disk; an empty target is none.", ("vdev", "target", "size")
    ),
    "drive.limited": Happening(
        "A disk has other limits.", ("vdev", "bytes_per_second", "ops_per_second", "burst")
    ),
    "drive.error": Happening("A disk has failed.", ("vdev", "error")),
    "drive.removed": Happening("A disk is gone.", ("vdev", "forced")),
    "console.added": Happening(
        "There is a further console, a channel, at device/console/N.", ("console", "number")
    ),
    "console.removed": Happening("A channel is gone.", ("console", "forced")),
    "console.opened": Happening(
        "The output of a VM, the boot of this number, begins at offset.", ("console", "offset", "boot")
    ),
    "console.attached": Happening("A viewer has come.", ("console", "viewer", "who", "mode", "offset")),
    "console.keyboard": Happening(
        "A viewer has got (mode rw) or lost (ro) the keyboard.", ("console", "viewer", "who", "mode")
    ),
    "console.detached": Happening(
        "A viewer has left; kicked: somebody else wished so.", ("console", "viewer", "who", "why", "kicked")
    ),
    "console.match": Happening(
        "What the definition watches for has come.",
        ("console", "pattern", "start", "end", "text", "skipped"),
    ),
    "console.log": Happening(
        "A log file cannot be written or made anew, or, with error null, is written well; lost bytes of what "
        "the guest printed are missing from it.",
        ("console", "path", "error", "lost"),
    ),
    "job.status": Happening(
        "A job has begun (running), or is over: done, failed with error, or cancelled.",
        ("job", "kind", "state", "error"),
    ),
    "job.progress": Happening("How far a job is, told now and then.", ("job", "done", "total", "unit")),
    "console.error": Happening("The daemon failed to serve a console.", ("console", "message")),
    "xenstore.fault": Happening(
        "The guest's xenstore connection was cut off; it may connect anew.", ("domid", "why")
    ),
    "xenstore.lost": Happening(
        "The guest does not read its watch events, and some were dropped.", ("domid",)
    ),
    "events.lost": Happening(
        "This client has missed the events of these numbers, as it did not read.", ("from", "to")
    ),
}
