"""The units, as systemd itself reads and judges them, and what they and the daemon must agree on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from xenpvd import paths
from xenpvd.__main__ import main
from xenpvd.gateway.__main__ import main as gateway_main
from xenpvd.gateway.config import DEFAULT

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = ("xenpvd@.service", "user/xenpvd@.service")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze: apt install systemd"
)


def setting(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def with_true(unit: str) -> str:
    """Its text, with commands that are there."""
    return re.sub(r"/usr/bin/(xenpvd|xenpvctl)\b", "/bin/true", (UNITS / unit).read_text())


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """One guest's unit, and the target, with a daemon that is there."""
    text = with_true("xenpvd@.service")
    shutil.copy(UNITS / "xenpvd.target", tmp_path)
    (tmp_path / "xenpvd@web1.service").write_text(text)
    return tmp_path / "xenpvd@web1.service"


@needs_systemd
def test_systemd_finds_nothing_to_say(unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit status is 0 for a key that it does not know, so what it prints counts."""
    said = analyze("verify", str(unit), str(tmp_path / "xenpvd.target"))
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    user = tmp_path / "user" / "xenpvd@web1.service"
    user.parent.mkdir()
    user.write_text(with_true("user/xenpvd@.service"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    said = analyze("--user", "verify", str(user))
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("KillMode", "KilMode"))
    assert "KilMode" in analyze("verify", str(unit)).stderr, "it does look"


@needs_systemd
def test_how_much_a_guests_daemon_could_do(unit: Path) -> None:
    said = analyze("security", "--offline=yes", "--threshold=10", "--no-pager", str(unit))
    assert said.returncode == 0, f"more than 1.0:\n{said.stdout}{said.stderr}"
    unit.write_text(
        re.sub("^(Protect|Private|Restrict|SystemCall).*\n", "", unit.read_text(), flags=re.MULTILINE)
    )
    assert analyze("security", "--offline=yes", "--threshold=10", str(unit)).returncode != 0, "it does look"


@pytest.fixture
def gateway(tmp_path: Path) -> Path:
    """Its unit, and its socket."""
    text = (UNITS / "xenpvd-gateway.service").read_text().replace("/usr/bin/xenpvd-gateway", "/bin/true")
    shutil.copy(UNITS / "xenpvd-gateway.socket", tmp_path)
    (tmp_path / "xenpvd-gateway.service").write_text(text)
    return tmp_path / "xenpvd-gateway.service"


@needs_systemd
def test_the_gateways_units(gateway: Path) -> None:
    said = analyze("verify", str(gateway), str(gateway.with_suffix(".socket")))
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    said = analyze("security", "--offline=yes", "--threshold=5", "--no-pager", str(gateway))
    assert said.returncode == 0, f"more than 0.5:\n{said.stdout}{said.stderr}"
    gateway.write_text(gateway.read_text().replace("PrivateNetwork", "#"))
    assert analyze("security", "--offline=yes", "--threshold=5", str(gateway)).returncode != 0, "it does look"


def test_the_gateways_command_line(tmp_path: Path) -> None:
    (command,) = setting("xenpvd-gateway.service", "ExecStart")
    words = [word.replace(str(DEFAULT.parent), str(tmp_path)) for word in command.split()]
    assert words[0] == "/usr/bin/xenpvd-gateway" and f"{tmp_path}/gateway.toml" in words
    for text in (None, "", 'tokens = "missing"'):
        if text is not None:
            (tmp_path / "gateway.toml").write_text(text)
        done = CliRunner().invoke(gateway_main, words[1:])
        assert done.exit_code == 2 and done.stderr.startswith("xenpvd-gateway: cannot "), text
    assert setting("xenpvd-gateway.service", "RestartPreventExitStatus") == ["2"]


def test_no_start_again_after_a_fault_that_stays() -> None:
    """2, usage and configuration, and 3, the name, are so in the manual, too."""
    pages = {"xenpvd@.service": "xenpvd.8", "user/xenpvd@.service": "xenpvd.8"}
    for service, name in (pages | {"xenpvd-gateway.service": "xenpvd-gateway.8"}).items():
        page = (UNITS.parent / "docs/man" / name).read_text()
        told = re.findall(r"^\.It (\d)$", page.partition(".Sh EXIT STATUS")[2], re.MULTILINE)
        assert {"0", "1", *setting(service, "RestartPreventExitStatus")[0].split()} == set(told), service


def test_reloads() -> None:
    """A guest's says whether its file could be used."""
    for service in SERVICES:
        (command,) = setting(service, "ExecReload")
        assert re.fullmatch(r"/usr/bin/xenpvctl --run-dir \S+/xenpvd reload %i", command), service
    assert setting("xenpvd-gateway.service", "ExecReload") == ['/bin/sh -c "kill -HUP $MAINPID"']


def test_its_groups_are_made() -> None:
    made = re.findall(r"^g (\S+)", (UNITS / "sysusers.d/xenpvd.conf").read_text(), re.MULTILINE)
    for service in ("xenpvd@.service", "xenpvd-gateway.service"):
        assert {*setting(service, "Group"), *setting(service, "SupplementaryGroups")} <= set(made), service


def test_no_guests_user_is_the_gateways() -> None:
    """A guest may be called gateway."""
    (user,), (guests,) = setting("xenpvd-gateway.service", "User"), setting("xenpvd@.service", "User")
    assert not user.startswith(guests.removesuffix("%i"))
    assert setting("xenpvd-gateway.service", "Group") == setting("xenpvd@.service", "Group")


@pytest.mark.parametrize("service", SERVICES)
def test_its_command_line_is_the_daemons(service: str, tmp_path: Path) -> None:
    (command,) = setting(service, "ExecStart")
    definition = tmp_path / "web1.toml"
    words = [word.replace("%i", "web1") for word in command.split()]
    assert words[0] == "/usr/bin/xenpvd" and words[1] == "--config"
    definition.write_text("")
    done = CliRunner().invoke(main, ["--config", str(definition), *words[3:]])
    assert done.exit_code == 2 and "kernel" in done.stderr, "the definition is all it finds fault with"
    definition.unlink()
    assert CliRunner().invoke(main, ["--config", str(definition), *words[3:]]).exit_code == 2
    assert 2 in [int(status) for status in setting(service, "RestartPreventExitStatus")[0].split()]


@pytest.mark.parametrize("service", SERVICES)
def test_it_is_given_the_time_that_it_takes(service: str) -> None:
    (command,) = setting(service, "ExecStart")
    words = command.split()
    asked = float(words[words.index("--stop-timeout") + 1])
    assert float(setting(service, "TimeoutStopSec")[0]) >= asked + 30


@pytest.mark.parametrize("service", SERVICES)
def test_a_reload_is_told_how_it_went(service: str) -> None:
    (begin,), (command,) = setting(service, "ExecStart"), setting(service, "ExecReload")
    words = begin.split()
    place = words[words.index("--run-dir") + 1]
    assert command == f"/usr/bin/xenpvctl --run-dir {place} reload %i"


def test_places_are_those_of_the_client() -> None:
    (command,) = setting("xenpvd@.service", "ExecStart")
    assert f"--config {paths.CONFIG_DIR}/%i.toml " in command and "--run-dir /run/xenpvd " in command
    assert setting("xenpvd@.service", "RuntimeDirectory") == ["xenpvd/%i"]


def test_the_users_unit_is_the_systems_where_it_can_be() -> None:
    system, user = ((UNITS / name).read_text().splitlines() for name in SERVICES)
    own = [line for line in user if line not in system and not line.startswith("#")]
    assert [line.partition("=")[0] for line in own] == [
        "AssertPathExists", "ExecStart", "ExecReload", "UMask", "WantedBy"
    ]  # fmt: skip
