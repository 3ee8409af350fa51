"""The sockets that the gateway listens at: those that systemd hands over, or those of gateway.toml."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from xenpvd import sockets
from xenpvd.errors import BadConfig, HostError
from xenpvd.gateway.config import TlsConfig, address

#: sd_listen_fds(3)
FIRST = 3


def inherited() -> dict[str, socket.socket]:
    """Those of the supervisor (LISTEN_FDS), if it means this process, by their names."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    found = [socket.socket(fileno=FIRST + number) for number in range(count)]
    for sock in found:
        sock.setblocking(False)
        sock.set_inheritable(False)
    return {_name(sock): sock for sock in found}


def bind(where: str) -> socket.socket:
    """Raises :class:`HostError`."""
    place = address(where)
    if isinstance(place, Path):
        return sockets.listen(place)
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    try:
        return socket.create_server(place, family=family, backlog=sockets.BACKLOG)
    except OSError as fault:
        why = f"cannot listen at {where}: {os.strerror(fault.errno or 0)}. Choose another address (listen)."
        raise HostError(why, fault.errno or 0, where) from None


def _name(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return str(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check(where: str, sock: socket.socket, tls: bool) -> None:
    """Without TLS all that passes can be read on the way, tokens too: so nobody of another host may come.
    Raises :class:`BadConfig`."""
    if tls or sock.family == socket.AF_UNIX:
        return
    host = ip_address(sock.getsockname()[0].partition("%")[0])
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    if not (mapped or host).is_loopback:
        why = f"{where} is open to other hosts, which takes TLS"
        cure = "Add [tls], or listen at 127.0.0.1 or a socket's path."
        raise BadConfig(f"cannot listen: {why}. {cure}", [("listen", why)])


def context(tls: TlsConfig, folder: Path, tokens: bool) -> ssl.SSLContext:
    """Relative paths are in ``folder``. With ``tokens`` a client may come without a certificate. Raises
    :class:`BadConfig`."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    key = "tls.certificate"
    try:
        made.load_cert_chain(folder / tls.certificate, folder / tls.key)
        if tls.client_ca is not None:
            key = "tls.client_ca"
            made.load_verify_locations(folder / tls.client_ca)
            made.verify_mode = ssl.CERT_OPTIONAL if tokens else ssl.CERT_REQUIRED
        if tls.client_crl is not None:
            key = "tls.client_crl"
            before = made.cert_store_stats()["x509"]
            made.load_verify_locations(folder / tls.client_crl)
            if made.cert_store_stats()["x509"] > before:  # it would be a CA from now on
                raise OSError(errno.EINVAL, "there is a certificate in it, too")
            made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as fault:
        why = (fault.reason if isinstance(fault, ssl.SSLError) else fault.strerror) or str(fault)
        files = f"{tls.certificate} with {tls.key}" if key == "tls.certificate" else getattr(tls, key[4:])
        raise BadConfig(f"cannot use {key}, {files}: {why}. Check the files.", [(key, why)]) from None
    return made
