"""The manual says what the code says, all of it and nothing else; and its examples can be typed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lab import man, mdoc
from xenpvd import config, paths
from xenpvd.ctl.cli import cli
from xenpvd.gateway import config as gateway
from xenpvd.rpc.methods import METHODS
from xenpvd.rpc.schema import NOTIFICATIONS, document

API = document(METHODS)
PAGES = {path.name: path.read_text(encoding="utf-8") for path in man.PAGES.iterdir()}
#: of others
FOREIGN = {
    ("xl", "1"), ("sd_notify", "3"), ("sd_listen_fds", "3"), ("sd-daemon", "3"), ("systemd.socket", "5")
}  # fmt: skip

pages = pytest.mark.parametrize("name", PAGES)


def macro(page: str, name: str, pattern: str = r"\S+") -> set[str]:
    """What comes first behind a macro, wherever in a line it is."""
    found = re.findall(rf"^(?:\..*?[. ]|\.){name} (?:\\&)?({pattern})", page, re.MULTILINE)
    return {text.replace("\\-", "-") for text in found}


def commands(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for word, each in command.commands.items():
            yield from commands(each, f"{name} {word}".strip())


def options(command: click.Command) -> set[str]:
    context = click.Context(command, **command.context_settings)
    params = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    return {name for option in params for name in (*option.opts, *option.secondary_opts)}


def examples(page: str) -> list[str]:
    return re.findall(r"^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$", page, re.MULTILINE)


@pages
def test_no_drift(name: str) -> None:
    assert man.written(PAGES[name]) == PAGES[name], "run: python -m lab.man"


def test_writing_fills_the_parts_and_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "a.1"
    page.write_text('Prose.\n.\\" BEGIN keys shim\nold\n.\\" END\nMore.\n')
    monkeypatch.setattr(man, "PAGES", tmp_path)
    monkeypatch.setattr(man, "CHECKOUT", tmp_path)
    assert man.main() == 0
    text = page.read_text()
    assert text.startswith('Prose.\n.\\" BEGIN keys shim\n.Bl') and text.endswith('.El\n.\\" END\nMore.\n')
    assert ".It Ic path" in text and "old" not in text
    assert man.main() == 0
    assert capsys.readouterr().out == "a.1\n"


def test_every_verb_and_option_is_in_xenpvctl() -> None:
    page = PAGES["xenpvctl.1"].replace("\\-", "-")
    known: set[str] = set()
    for name, command in commands(cli):
        if name and not isinstance(command, click.Group):
            (item,) = re.findall(
                rf"^\.It Cm {re.escape(name)}(?: .*)?\n(?:.*\n)*?(?=\.It Cm|\.\\\" END)", page, re.M
            )
            for option in options(command) - set(man.EVERYWHERE) - {"-h"}:
                assert re.search(rf"Fl {re.escape(option[1:])}(?![\w-])", item), f"{name} {option}"
        known |= options(command)
    assert macro(page, "Fl", r"[-\w\\]+") <= {option[1:] for option in known}
    verbs = {name.split()[0] for name, _ in commands(cli) if name} | {"unpause"}
    assert macro(page, "Cm") == verbs


@pytest.mark.parametrize("name", ["xenpvd", "xenpvd-gateway"])
def test_every_option_is_in_its_page(name: str) -> None:
    page = PAGES[f"{name}.8"]
    assert macro(page, "It Fl") | macro(page, ", Fl") == {
        option[1:] for option in options(man.COMMANDS[name])
    }


def test_every_key_is_in_xenpvd_toml() -> None:
    tables = {"shim", "metrics", "console", "channel", "ready", "access", "disk"}
    top = config.GuestConfig.model_fields.keys() - tables
    keys = {key for name, table in man.TABLES.items() if name != "top" for key in table.model_fields}
    assert macro(PAGES["xenpvd.toml.5"], "It Ic") == (top | keys) - {"limits"}
    assert "the guest may only read" in PAGES["xenpvd.toml.5"].replace("\n", " ")  # disk.access
    assert {name.strip("[]") for name in macro(PAGES["xenpvd.toml.5"], "Ss", r"\[[^\\]+")} == {
        *tables,
        "disk.limits",
    }
    models = {
        model
        for model in vars(config).values()
        if isinstance(model, type) and issubclass(model, config.Strict)
    }
    assert models - {config.Strict} == set(man.TABLES.values())


def test_what_a_key_takes_is_told_as_it_is() -> None:
    def told(table: str, key: str) -> str:
        (item,) = re.findall(
            rf"^\.It Ic {key}\n((?:(?!\.It|\.El).*\n)*)", "\n".join(man.keys([table])) + "\n", re.M
        )
        return " ".join(item.split())

    assert told("ready", "when").endswith(
        "A text; it must be created, shim, kernel, xenbus, devices, console:TEXT or xenstore:PATH."
    )
    assert told("top", "kernel").endswith('A path, or "pvgrub".')
    assert told("shim", "path").endswith('A path, or "auto".')
    assert told("console", "log").endswith("A path.")


def test_every_key_is_in_xenpvd_gateway() -> None:
    keys = {key for table in man.GATEWAY_TABLES.values() for key in table.model_fields}
    assert macro(PAGES["xenpvd-gateway.8"], "It Ic") == keys - {"tls", "client"}
    models = {model for model in vars(gateway).values() if isinstance(model, type)}
    tables = {model for model in models if issubclass(model, gateway._Table)}
    assert tables - {gateway._Table} == set(man.GATEWAY_TABLES.values())


def test_the_api_is_in_xenpvd_rpc() -> None:
    page = PAGES["xenpvd-rpc.7"]
    events = {event["name"] for event in API["x-events"]}
    named = {*METHODS, *NOTIFICATIONS, *events, *API["components"]["schemas"]}
    assert macro(page, "It Sy") == named
    assert macro(page, "Sy") <= named
    assert macro(page, "It Er") == set(API["components"]["errors"])


@pages
def test_references(name: str) -> None:
    ours = {(page.rpartition(".")[0], page.rpartition(".")[2]) for page in PAGES}
    found = set(re.findall(r"^\.(?:.* )?Xr (\S+) (\d)", PAGES[name], re.MULTILINE))
    assert found - FOREIGN <= ours
    title = re.search(r"^\.Dt (\S+) (\d)$", PAGES[name], re.MULTILINE)
    assert title is not None and f"{title[1].lower()}.{title[2]}" == name


@pages
def test_mandoc_has_no_complaint(name: str) -> None:
    mandoc = shutil.which("mandoc")
    if mandoc is None:
        pytest.skip("no mandoc here: apt install mandoc")
    lint = [mandoc, "-T", "lint", "-W", "warning", man.PAGES / name]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    shown = subprocess.run(
        [mandoc, "-T", "ascii", man.PAGES / name], capture_output=True, text=True, check=True
    )
    assert "BEGIN" not in shown.stdout


def test_the_definitions_in_it_are_valid(tmp_path: Path) -> None:
    found = examples(PAGES["xenpvd.toml.5"])
    assert len(found) == 2
    for text in found:
        definition = tomllib.loads(text)
        paths.anchor(definition, tmp_path)
        config.parse(definition, "the page")


def test_the_commands_in_it_can_be_typed() -> None:
    lines = [
        line for page in PAGES.values() for text in examples(page) for line in text.splitlines()
        if line.startswith("xenpvctl ")
    ]  # fmt: skip
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line.partition(">")[0])[1:]
        command: click.Command = cli
        while isinstance(command, click.Group):
            _, found, words = command.resolve_command(click.Context(command), words)
            assert found is not None
            command = found
        command.make_context("it", words)


def test_text_becomes_mdoc() -> None:
    assert list(mdoc.prose("One. Two ``code`` \\ ^]\n\nThree --json")) == [
        "One.", "Two \\(lqcode\\(rq \\e \\(ha]", ".Pp", "Three \\-\\-json",
    ]  # fmt: skip
    assert list(mdoc.prose(".dot")) == ["\\&.dot"]
    assert mdoc.words("It is No , Ar x") == "\\&It is \\&No \\&, \\&Ar x"
    assert list(mdoc.items([])) == []
