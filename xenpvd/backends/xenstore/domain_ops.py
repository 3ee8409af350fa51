"""The operations on domains: whom the store serves, with which features, and how much each may take.

A ring's page and port come from whoever runs the domain, never from a request: INTRODUCE lets one that is
known here begin anew.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENOENT

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore.quota import NAMES
from xenpvd.backends.xenstore.request import OK, Op, Request, number
from xenpvd.backends.xenstore.ring import FEATURES
from xenpvd.backends.xenstore.wire import join
from xenpvd.errors import XenError

DOMID_SELF = 0x7FF0
_VALUE_MAX = 0xFFFF_FFFF


def _domid(raw: bytes) -> int:
    return number(raw, "domid", 65535)


def _connected(request: Request, raw: bytes) -> int:
    """A domain that the store serves, not domain 0."""
    domid = _domid(raw)
    if domid == 0:
        raise XenError(EINVAL, "domain 0 is always there")
    _check_known(request, domid)
    return domid


def _check_known(request: Request, domid: int) -> None:
    if domid not in request.state.introduced:
        raise XenError(ENOENT, f"no domain {domid}")


def do_introduce(request: Request) -> bytes:
    raw, _gfn, port, *_ = request.arguments(3, 4)
    domid = _domid(raw)
    number(port, "port", 4095)
    state = request.state
    new = domid not in state.introduced
    if domid == 0 or state.rings is None or not state.rings.reset(domid):
        raise XenError(EINVAL, f"domain {domid} has no ring here")
    if new:
        request.events += state.special(paths.INTRODUCE_DOMAIN, domid)
    return OK


def do_release(request: Request) -> bytes:
    domid = _connected(request, request.argument())
    state = request.state
    if state.rings is not None:
        state.rings.release(domid)
    connection = state.introduced.pop(domid)
    if connection is not None:
        state.reset(connection)
    request.changes, request.events = state.release(domid)
    return OK


def do_resume(request: Request) -> bytes:
    """A domain's shutdown is not the store's affair here, so there is nothing to take back."""
    _connected(request, request.argument())
    return OK


def do_set_target(request: Request) -> bytes:
    domid, target = (_connected(request, raw) for raw in request.arguments(2))
    request.state.domains.set_target(domid, target)
    return OK


def do_get_domain_path(request: Request) -> bytes:
    return join(paths.home(_domid(request.argument())))


def do_is_domain_introduced(request: Request) -> bytes:
    return join("T" if _domid(request.argument()) in (*request.state.introduced, DOMID_SELF) else "F")


def do_get_feature(request: Request) -> bytes:
    if request.message.payload:
        request.check_privileged()
        _check_known(request, _domid(request.argument()))
    return join(str(FEATURES))


def do_set_feature(request: Request) -> bytes:
    raw, value = request.arguments(2)
    number(value, "features", _VALUE_MAX)
    _check_known(request, _domid(raw))
    raise XenError(EBUSY, "they are fixed when a domain is introduced")


def do_get_quota(request: Request) -> bytes:
    *domain, name = request.arguments(0, 1, 2) or [b""]
    if not name:
        return join(" ".join(NAMES))
    return join(str(request.state.domains.get_quota(_text(name), _whose(request, domain))))


def do_set_quota(request: Request) -> bytes:
    *domain, name, value = request.arguments(2, 3)
    domid = _whose(request, domain)
    request.state.domains.set_quota(_text(name), number(value, "value", _VALUE_MAX), domid)
    return OK


def _whose(request: Request, domain: list[bytes]) -> int | None:
    return _connected(request, domain[0]) if domain else None


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "replace")


OPERATIONS = {
    abi.XS_INTRODUCE: Op(do_introduce, privileged=True),
    abi.XS_RELEASE: Op(do_release, privileged=True),
    abi.XS_RESUME: Op(do_resume, privileged=True),
    abi.XS_SET_TARGET: Op(do_set_target, privileged=True),
    abi.XS_GET_DOMAIN_PATH: Op(do_get_domain_path),
    abi.XS_IS_DOMAIN_INTRODUCED: Op(do_is_domain_introduced, privileged=True),
    abi.XS_GET_FEATURE: Op(do_get_feature),
    abi.XS_SET_FEATURE: Op(do_set_feature, privileged=True),
    abi.XS_GET_QUOTA: Op(do_get_quota, privileged=True),
    abi.XS_SET_QUOTA: Op(do_set_quota, privileged=True),
}
