"""What gateway.toml says: where to listen, who may come in, and what they may do."""

from __future__ import annotations

import re
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from xenpvd.access import Role
from xenpvd.config import problems
from xenpvd.errors import BadConfig, HostError

DEFAULT = Path("/etc/xenpvd/gateway.toml")

_PORT = re.compile(r"(?:\[([0-9a-fA-F:.%]+)\]|([0-9.]+)):([0-9]{1,5})")


def address(text: str) -> tuple[str, int] | Path:
    """Where ``127.0.0.1:8443``, ``[::1]:8443`` or ``/run/gateway.sock`` is. Raises ValueError."""
    if text.startswith("/"):
        return Path(text)
    if (found := _PORT.fullmatch(text)) is None or int(found[3]) > 65535:
        raise ValueError("it must be ADDRESS:PORT in numbers, as 127.0.0.1:8443, or a socket's path")
    host = found[1] or found[2]
    ip_address(host)
    return host, int(found[3])


def _listen(text: str) -> str:
    address(text)
    return text


def _file(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("it must be a file's path")
    return text


Listen = Annotated[str, Field(max_length=256), AfterValidator(_listen)]
#: Relative ones are beside gateway.toml.
File = Annotated[str, Field(max_length=4096), AfterValidator(_file)]
#: Of guests' names, as a shell's.
PATTERN = "[a-z0-9._*?-]{1,64}"
Pattern = Annotated[str, Field(pattern=f"^{PATTERN}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsConfig(_Table):
    """With it connections over TCP are encrypted, and may come from anywhere."""

    certificate: File = Field(description="of this host, with those that lead to its CA's (PEM)")
    key: File = Field(description="its private key (PEM)")
    client_ca: File | None = Field(None, description="whose certificates clients may come with (PEM)")
    client_crl: File | None = Field(None, description="those of them that are revoked: each CA's list (PEM)")


class ClientConfig(_Table):
    """Who comes with a certificate of ``tls.client_ca``."""

    name: str = Field(min_length=1, max_length=64, description="its subject's common name (CN)")
    role: Role = Field(description="what it may do: the roles of xenpvd-rpc(7)")
    guests: Pattern = Field("*", description="those that it may see, as web*")


class GatewayConfig(_Table):
    listen: tuple[Listen, ...] = Field(
        ("127.0.0.1:8443",),
        max_length=16,
        description="ADDRESS:PORT in numbers, or a socket's path; sockets of systemd count instead",
    )
    tokens: File | None = Field(
        None,
        description="a file of lines SHA256 ROLE [GUESTS], which nobody but its owner and group may read",
    )
    tls: TlsConfig | None = None
    client: tuple[ClientConfig, ...] = Field((), max_length=1024)
    names: tuple[str, ...] = Field((), max_length=64, description="by which browsers reach it, as a.example")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="how much is logged; what takes more than a viewer is, with who called it"
    )


def load(path: Path) -> GatewayConfig:
    """Raises :class:`HostError` if it cannot be read, :class:`BadConfig` with every problem."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        why = f"cannot read {path}: {fault.strerror}. Write it (docs/gateway.md), or give another --config."
        raise HostError(why, fault.errno or 0, str(path)) from None
    except (ValueError, RecursionError) as fault:  # not all of tomllib's are its own: digits, depth
        raise BadConfig(f"cannot use {path}: no valid TOML: {fault}.", [("(file)", str(fault))]) from None
    try:
        config = GatewayConfig.model_validate(data)
        found = list(_contradictions(config))
    except ValidationError as fault:
        found = problems(fault)
    if found:
        lines = "; ".join(f"{loc}: {msg}" for loc, msg in found)
        raise BadConfig(f"cannot use {path}: {lines}. Mend these keys.", found)
    return config


def _contradictions(config: GatewayConfig) -> list[tuple[str, str]]:
    found = []
    if config.tokens is None and not config.client:
        found.append(("tokens", "nobody could come in: name a file of tokens, or clients with certificates"))
    if config.client and (config.tls is None or config.tls.client_ca is None):
        found.append(("tls.client_ca", "it is missing, and clients come with certificates of it"))
    if config.tls is not None and config.tls.client_crl and config.tls.client_ca is None:
        found.append(("tls.client_ca", "it is missing, and tls.client_crl is a list of it"))
    if len({client.name for client in config.client}) < len(config.client):
        found.append(("client", "two have one name"))
    return found
