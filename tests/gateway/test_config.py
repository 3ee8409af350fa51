"""gateway.toml: what it takes, and every fault by its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenpvd.errors import BadConfig, HostError
from xenpvd.gateway.config import address, load


def test_a_whole_one(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("""
        listen = ["0.0.0.0:8443", "[::1]:1", "/run/xenpvd-gateway.sock"]
        tokens = "gateway.tokens"
        names = ["xen.example.org"]
        [tls]
        certificate = "gateway.crt"
        key = "gateway.key"
        client_ca = "clients.crt"
        client_crl = "clients.crl"
        [[client]]
        name = "alice"
        role = "operator"
        guests = "web*"
    """)
    config = load(file)
    assert config.tls is not None
    assert (config.tls.client_ca, config.tls.client_crl) == ("clients.crt", "clients.crl")
    assert (config.client[0].name, config.client[0].role, config.client[0].guests) == (
        "alice",
        "operator",
        "web*",
    )
    assert [address(where) for where in config.listen] == [
        ("0.0.0.0", 8443),
        ("::1", 1),
        Path("/run/xenpvd-gateway.sock"),
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "tokens: nobody could come in"),
        ("tokens = 't'\nlisten = ['localhost:1']", "listen.0: "),
        ("tokens = 't'\nlisten = ['127.0.0.1:65536']", "listen.0: "),
        ("tokens = 't'\nlisten = ['999.0.0.1:1']", "listen.0: "),
        ("tokens = ''", "tokens: "),
        ("token = 't'", "token: there is no such key"),
        ("tokens = 't'\n[tls]\nkey = 'k'", "tls.certificate: it is missing"),
        ("[[client]]\nname = 'a'\nrole = 'admin'", "tls.client_ca: it is missing"),
        (
            "tokens = 't'\n[tls]\nkey = 'k'\ncertificate = 'c'\nclient_crl = 'r'",
            "tls.client_ca: it is missing",
        ),
        ("[[client]]\nname = 'a'\nrole = 'root'", "client.0.role: "),
        ("[[client]]\nname = 'a'\nrole = 'admin'\nguests = 'A/..'", "client.0.guests: "),
        (
            "tokens = 't'\n[tls]\nkey = 'k'\ncertificate = 'c'\nclient_ca = 'a'\n"
            + "[[client]]\nname = 'a'\nrole = 'admin'\n" * 2,
            "client: two have one name",
        ),
        ("tokens = ", "no valid TOML"),
        ("tokens = " + "[" * 5000, "no valid TOML: maximum recursion"),
    ],
)
def test_faults(tmp_path: Path, text: str, place: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(BadConfig) as caught:
        load(file)
    assert place in str(caught.value) and str(caught.value).startswith(f"cannot use {file}: ")


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot read .*Write it"):
        load(tmp_path / "gateway.toml")
