"""Tokens, certificates and tickets: whom they let in, and whom not."""

from __future__ import annotations

import hmac
from hashlib import sha256
from pathlib import Path

import pytest

from xenpvd.errors import BadConfig, HostError, LimitReached
from xenpvd.gateway.access import TICKET_TIME, TICKETS_MAX, Caller, Certificates, Tickets, Tokens
from xenpvd.gateway.config import ClientConfig

DIGEST = sha256(b"secret").hexdigest()


def test_tokens() -> None:
    tokens = Tokens(["# mine", "", f"{DIGEST} operator web*  # bob"])
    found = tokens.find("secret")
    assert found == Caller(f"token {DIGEST[:8]}", "operator", "web*")
    assert found.sees("web1") and not found.sees("db1")
    assert tokens.find("Secret") is tokens.find("") is tokens.find(DIGEST) is tokens.find("\ud800") is None


def test_a_token_is_compared_in_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each that is known, whether one has fitted or not."""
    compared = list[str]()

    def compare(known: str, digest: str) -> bool:
        compared.append(known)
        return known == digest

    monkeypatch.setattr(hmac, "compare_digest", compare)
    other = sha256(b"other").hexdigest()
    tokens = Tokens([f"{DIGEST} admin", f"{other} viewer"])
    assert tokens.find("secret") is not None and compared == [DIGEST, other]


@pytest.mark.parametrize(
    "line",
    [
        "secret admin",
        DIGEST,
        f"{DIGEST} root",
        f"{DIGEST.upper()} admin",
        f"{DIGEST} admin WEB",
        f"{DIGEST} admin web* db*",
    ],
)
def test_a_line_that_is_none(line: str) -> None:
    with pytest.raises(BadConfig, match="line 2 is not SHA256"):
        Tokens(["", line])


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    with pytest.raises(HostError, match="cannot read"):
        Tokens.load(file)
    file.write_text(f"{DIGEST} admin\n")
    file.chmod(0o644)
    with pytest.raises(BadConfig, match=f"everybody can use the file. Run: chmod o= {file}"):
        Tokens.load(file)
    file.chmod(0o640)
    assert Tokens.load(file).find("secret") == Caller(f"token {DIGEST[:8]}", "admin")
    file.write_bytes(b"\xff")
    with pytest.raises(BadConfig, match="no text"):
        Tokens.load(file)


def test_certificates() -> None:
    known = Certificates([ClientConfig(name="alice", role="viewer", guests="web*")])
    subject = ((("organizationName", "Example"),), (("commonName", "alice"),))
    assert known.find({"subject": subject}) == Caller("client alice", "viewer", "web*")
    assert known.find({"subject": (*subject, (("commonName", "bob"),))}) is None
    assert known.find({"subject": ((("commonName", "bob"),),)}) is known.find({}) is known.find(None) is None


def test_a_ticket_is_good_once_and_not_for_long() -> None:
    now = [100.0]
    tickets, bob = Tickets(lambda: now[0]), Caller("bob", "viewer")
    first, second = tickets.issue(bob), tickets.issue(bob)
    assert first != second and tickets.redeem(first) == bob and tickets.redeem(first) is None
    now[0] += TICKET_TIME
    assert tickets.redeem(second) is None
    assert tickets.redeem("") is None


def test_nobody_can_hoard_tickets() -> None:
    now = [100.0]
    tickets, bob = Tickets(lambda: now[0]), Caller("bob", "viewer")
    for _ in range(TICKETS_MAX):
        tickets.issue(bob)
    with pytest.raises(LimitReached):
        tickets.issue(bob)
    assert tickets.issue(Caller("alice", "viewer")), "others are not his victims"
    now[0] += TICKET_TIME
    assert tickets.issue(bob)
