"""The command as a whole: its verbs, and how little it loads before one runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.ctl.conftest import Daemon
from xenpvd.ctl.cli import cli

VERBS = """run start list status stats top console drive fd channel vcpu memory pause resume shutdown
           reboot reset destroy sysrq xenstore-ls xenstore-read xenstore-write xenstore-rm xenstore-watch
           xenstore-history xenstore-quota evtchn grant hypercalls events job dump reload quit daemon-log
           log-level call check doctor import-xl log viewers kick completion install-units"""

#: What a verb over the socket must not load: it costs more than all the rest.
HEAVY = "aiohttp pydantic pydantic_core jsonrpcserver jsonschema uvloop asyncio subprocess ctypes importlib.metadata tempfile xenpvd.rpc xenpvd.config xenpvd.vmm"  # noqa: E501


def test_verbs_have_help_and_json() -> None:
    assert set(cli.commands) == set(VERBS.split())
    verbs = [verb for verb in cli.commands.values() if not isinstance(verb, click.Group)]
    groups = [verb for verb in cli.commands.values() if isinstance(verb, click.Group)]
    for verb in [*verbs, *(verb for group in groups for verb in group.commands.values())]:
        assert verb.help, verb.name
        assert any("--json" in option.opts for option in verb.params), verb.name
    assert "3 no such guest" in CliRunner().invoke(cli, ["--help"]).stdout


@pytest.mark.parametrize(
    "verb",
    [
        "list",
        "status web1",
        "drive list web1",
        "events web1",
        "vcpu list web1",
        "hypercalls web1",
        "stats web1",
        "daemon-log web1",
        "job list web1",
        "top --once --interval 0.1",
    ],
)
def test_import_budget(run_dir: Path, daemon: Daemon, verb: str) -> None:
    code = (
        "import sys; from xenpvd.ctl.cli import cli; "
        f"cli({['--run-dir', str(run_dir), *verb.split()]!r}, standalone_mode=False); "
        "print('modules:', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "modules:" in loaded
    assert not loaded & set(HEAVY.split())


def test_run_dir_from_the_environment(run_dir: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENPVD_RUN_DIR", str(run_dir))
    assert "web1  running" in CliRunner().invoke(cli, ["list"]).stdout


@pytest.mark.parametrize("where", [0, 1, 2])
def test_run_dir_anywhere(run_dir: Path, daemon: Daemon, where: int) -> None:
    for option in (["--run-dir", str(run_dir)], [f"--run-dir={run_dir}"]):
        words = ["status", "web1"]
        words[where:where] = option
        assert CliRunner().invoke(cli, words).exit_code == 0
    assert CliRunner().invoke(cli, ["list", "--run-dir"]).exit_code == 2
