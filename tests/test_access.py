"""Roles by user and group, and what the kernel says of a peer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xenpvd import config
from xenpvd.access import Access, Role, covers
from xenpvd.config import AccessConfig
from xenpvd.errors import BadConfig
from xenpvd.sockets import Credentials

NOBODY = 65534


def access(**lists: list[str]) -> Access:
    return Access(AccessConfig.model_validate(lists))


@pytest.mark.parametrize(
    ("peer", "role"),
    [
        (Credentials(1, 0, 0, ()), "admin"),
        (Credentials(1, os.geteuid(), 4, ()), "admin"),
        (Credentials(1, 4711, 4, ()), None),
        (Credentials(1, 4711, 50, ()), "viewer"),
        (Credentials(1, 4711, 4, (3, 50)), "viewer"),
        (Credentials(1, 4711, 50, (60,)), "operator"),
        (Credentials(1, 4712, 50, (60,)), "admin"),
    ],
)
def test_the_highest_role_of_those_listed(peer: Credentials, role: Role | None) -> None:
    found = access(viewer=["group:50"], operator=["group:60", "user:4712"], admin=["user:4712"])
    assert found.restricted and found.role(peer) == role
    assert found.look(peer) == (None if role is None else "viewer")


def test_without_lists_the_file_modes_decide() -> None:
    stranger = Credentials(1, 4711, 4711, ())
    found = access()
    assert not found.restricted and found.role(stranger) == "admin" and found.look(stranger) == "viewer"


def test_names_of_this_host() -> None:
    found = access(viewer=["user:root"], operator=["group:root"])
    assert found.role(Credentials(1, 4711, 0, ())) == "operator"
    with pytest.raises(BadConfig, match="there is no group no-such-group on this host") as caught:
        access(operator=["group:root", "group:no-such-group"], viewer=["user:no-such-user"])
    assert [place for place, _ in caught.value.problems] == ["access.viewer.0", "access.operator.1"]


@pytest.mark.parametrize("who", ["alice", "user:", "group:a b", "uid:5", "user:a/b", 5])
def test_what_names_nobody(who: Any) -> None:
    data = {"kernel": "/k", "access": {"viewer": [who]}}
    with pytest.raises(BadConfig, match=r"access\.viewer\.0: "):
        config.parse(data, "web1.toml")


def test_roles_are_an_order() -> None:
    assert covers("admin", "viewer") and covers("operator", "operator") and not covers("viewer", "operator")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else: run it as root")
def test_a_daemon_with_roles_as_others_see_it(tmp_path: Path) -> None:
    """N20: the command itself, and xenpvctl as users with a role and without."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o711)
    file, run_dir = tmp_path / "web1.toml", tmp_path / "run"
    run_dir.mkdir(mode=0o755)
    file.write_text(f'kernel = "/k"\n[access]\nviewer = ["group:50"]\noperator = ["user:{NOBODY - 1}"]\n')
    command = [sys.executable, "-m", "xenpvd", "--config", str(file), "--run-dir", str(run_dir)]
    daemon = subprocess.Popen([*command, "--no-start", "--http"], stderr=subprocess.PIPE, text=True)
    assert daemon.stderr is not None
    try:
        while "is ready" not in (line := daemon.stderr.readline()):
            assert line

        def ctl(uid: int, gid: int, *argv: str) -> str:
            code = "import os, sys; from xenpvd.ctl.cli import main; from xenpvd.ctl import *\n"
            code += f"os.setgroups([]); os.setgid({gid}); os.setuid({uid}); main()"
            call = [sys.executable, "-c", code, "--run-dir", str(run_dir), *argv]
            done = subprocess.run(call, capture_output=True, text=True, timeout=30, check=False)
            return f"{done.returncode} {done.stdout}{done.stderr}"

        def get(uid: int, gid: int) -> str:
            code = f"import os, socket; os.setgroups([]); os.setgid({gid}); os.setuid({uid})\n"
            code += f"s = socket.socket(socket.AF_UNIX); s.connect({str(run_dir / 'web1/http.sock')!r})\n"
            code += "try: s.sendall(b'GET /healthz HTTP/1.0\\r\\n\\r\\n')\n"
            code += "except BrokenPipeError: pass  # it was told at once\nprint(s.recv(12).decode())"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            return done.stdout + done.stderr

        assert get(NOBODY, 50) == "HTTP/1.0 200\n" and get(NOBODY, 4) == "HTTP/1.1 403\n"
        assert ctl(NOBODY, 50, "status", "web1").startswith("0 name:       web1")
        assert "you are viewer here, and that takes operator" in ctl(NOBODY, 50, "destroy", "web1")
        assert "cannot pause: the guest is defined" in ctl(NOBODY - 1, 4, "pause", "web1")
        assert "that takes admin" in ctl(NOBODY - 1, 4, "call", "web1", "daemon.quit")
        assert "you have no role here" in ctl(NOBODY, 4, "status", "web1")
        assert "no permission" in ctl(NOBODY, 4, "list")
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
