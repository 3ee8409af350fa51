"""The files of docs/orchestrators.md are whole, as far as that can be told without a cluster, and what they
run does what they say: commands as they are written, but for places, on a daemon whose machine is a fake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from tests.conftest import tiny_shim
from xenpvd import config
from xenpvd.__main__ import main

HOUSE = Path(__file__).parents[1]
EXAMPLES = HOUSE / "docs/examples"
PAGE = (HOUSE / "docs/orchestrators.md").read_text(encoding="utf-8")

Words = list[str]


class Host:
    """Stands in for the one that an example runs on: its places are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("opt/xenpvd/bin", "etc/xenpvd", "run/xenpvd", "srv/guests", "local"):
            (folder / name).mkdir(parents=True)
        (folder / "shim").write_bytes(tiny_shim())
        for name in ("vmlinuz", "initrd.gz"):
            (folder / "srv/guests" / name).write_bytes(b"it")
        (folder / "srv/guests/web1.img").write_bytes(bytes(1 << 20))
        self._command("xenpvd", str(HOUSE / "tests/fakes/daemon.py"))
        self._command("xenpvctl", "-m", "xenpvd.ctl.cli")
        self.environment = {
            "PATH": f"{folder}/opt/xenpvd/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(HOUSE),
            "SHIM": f"{folder}/shim",
        }

    def _command(self, name: str, *words: str) -> None:
        script = self.folder / "opt/xenpvd/bin" / name
        script.write_text("#!/bin/sh\nexec " + " ".join([sys.executable, *words]) + ' "$@"\n')
        script.chmod(0o755)

    def here(self, text: str) -> str:
        """With the places as they are here."""
        return re.sub(r"/(opt/xenpvd|etc/xenpvd|run/xenpvd|srv/guests)\b", rf"{self.folder}/\1", text)

    def write(self, place: str, definition: str) -> None:
        """What the guest's definition is, which must be a whole one."""
        config.parse(tomllib.loads(definition) | {"name": "web1"}, place)
        (self.folder / place).write_text(self.here(definition))

    def status(self, command: Words) -> int:
        return self.run(command).returncode

    def run(self, command: Words) -> subprocess.CompletedProcess[str]:
        words = [self.here(word) for word in command]
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=50, check=False
        )

    @contextmanager
    def daemon(self, command: Words) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [self.here(word) for word in command], env=self.environment, stderr=log, stdout=log
            )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def until(self, good: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        while not good():
            assert process.poll() is None, (self.folder / "log").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def seconds(text: str) -> int:
    """``90s`` or ``5m``."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def stop_timeout(command: Words) -> int:
    return int(command[command.index("--stop-timeout") + 1])


def test_the_page_names_each_file() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix != ".py" and path.is_file()}
    assert set(re.findall(r"\]\(examples/(\S+?)\)", PAGE)) == {*files, "orchestrator.py"}


# ---- Nomad

#: the blocks that we use, and what of Nomad's job specification could be in them
#: (developer.hashicorp.com/nomad/docs/job-specification)
NOMAD = {
    "job": {"type", "group", "datacenters", "constraint"},
    "group": {"count", "reschedule", "restart", "task", "service", "update"},
    "reschedule": {"attempts", "unlimited", "interval", "delay", "delay_function", "max_delay"},
    "restart": {"attempts", "interval", "delay", "mode", "render_templates"},
    "task": {
        "driver", "config", "template", "resources", "service", "kill_signal", "kill_timeout", "user", "env",
    },
    "config": {"command", "args"},
    "template": {"destination", "change_mode", "data", "perms", "source"},
    "resources": {"cpu", "cores", "memory", "memory_max"},
    "service": {"name", "provider", "check", "tags", "port"},
    "check": {"name", "type", "command", "args", "interval", "timeout"},
}  # fmt: skip


def plain(value: Any) -> Any:
    """Of what hcl2 reads, the values: texts without their quotes, blocks without its own notes on them."""
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, str) and value.startswith('"'):
        text = value[1:-1]
        heredoc = re.fullmatch(r"<<-END\n(.*\n)\s*END", text, re.DOTALL)
        return heredoc[1] if heredoc else text
    return value


def block(parent: Any, kind: str, *labels: str) -> Any:
    """The one block of its kind, whose keys are Nomad's."""
    (found,) = parent[kind]
    for label in labels:
        found = found[label]
    assert found.keys() <= NOMAD[kind], kind
    return found


def test_nomad(host: Host) -> None:
    job = block(plain(hcl2.loads((EXAMPLES / "xenpvd.nomad.hcl").read_text())), "job", "web1")
    group = block(job, "group", "guest")
    block(group, "reschedule")
    restart = block(group, "restart")
    assert seconds(restart["interval"]) > restart["attempts"] * seconds(restart["delay"])
    task = block(group, "task", "xenpvd")
    run, template, check = (
        block(task, "config"),
        block(task, "template"),
        block(block(task, "service"), "check"),
    )
    command = [run["command"], *run["args"]]
    assert seconds(task["kill_timeout"]) >= stop_timeout(command) + 30
    assert f'max_kill_timeout = "{task["kill_timeout"]}"' in PAGE, "Nomad's own limit is lower"
    host.write(template["destination"], template["data"])
    memory = tomllib.loads(template["data"])["memory"]
    assert block(task, "resources")["memory"] >= memory + 256

    host.environment["NOMAD_TASK_DIR"] = str(host.folder / "local")
    command = [word.replace("${NOMAD_TASK_DIR}", host.environment["NOMAD_TASK_DIR"]) for word in command]
    ready = [check["command"], *check["args"]]
    assert host.status(ready) == 2, "critical: there is no guest yet"
    with host.daemon(command) as process:
        host.until(lambda: host.status(ready) == 0, process)
        process.send_signal(getattr(signal, task["kill_signal"]))
        assert process.wait(20) == 0
        assert "a life ends: poweroff" in (host.folder / "log").read_text(), "it was asked to"
    assert host.status(ready) == 2


# ---- Kubernetes


def test_kubernetes(host: Host) -> None:
    schema = json.loads((HOUSE / "tests/kubernetes/pod.json").read_text())
    definition, pod = yaml.safe_load_all((EXAMPLES / "xenpvd-pod.yaml").read_text())
    for each in (definition, pod):
        kind = schema["$defs"][f"io.k8s.api.core.v1.{each['kind']}"]
        faults = Draft202012Validator({**kind, "$defs": schema["$defs"]}).iter_errors(each)
        assert [f"{fault.json_path}: {fault.message}" for fault in faults] == []
    spec = pod["spec"]
    (container,) = spec["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
    assert mounts["definition"] == "/etc/xenpvd" and mounts["run"] == "/run/xenpvd"
    assert {"configMap": definition["metadata"], "name": "definition"} in spec["volumes"]
    ((file, text),) = definition["data"].items()
    host.write(f"etc/xenpvd/{file}", text)
    memory = tomllib.loads(text)["memory"]
    assert int(container["resources"]["limits"]["memory"].removesuffix("Mi")) >= memory + 256

    host.environment |= {one["name"]: host.here(one["value"]) for one in container["env"]}
    before_stop = container["lifecycle"]["preStop"]["exec"]["command"]
    asked = int(before_stop[before_stop.index("--timeout") + 1])
    assert spec["terminationGracePeriodSeconds"] >= max(asked, stop_timeout(container["command"])) + 30
    probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    startup, readiness, liveness = (probe["exec"]["command"] for probe in probes)
    for probe in probes:
        waits = [word for word in probe["exec"]["command"] if word.startswith("timeout=")]
        assert probe["timeoutSeconds"] >= 5 + sum(int(word.removeprefix("timeout=")) for word in waits)
    assert host.status(readiness) != 0 and host.status(liveness) != 0
    with host.daemon(container["command"]) as process:
        host.until(lambda: host.status(startup) == 0, process)
        assert host.status(readiness) == 0 and host.status(liveness) == 0
        done = host.run(before_stop)
        assert done.returncode == 0 and "web1 is stopped" in done.stdout, done
        assert process.wait(20) == 0, "which ends the container"


def test_kubernetes_schema_sees_what_is_wrong() -> None:
    schema = json.loads((HOUSE / "tests/kubernetes/pod.json").read_text())
    _, pod = yaml.safe_load_all((EXAMPLES / "xenpvd-pod.yaml").read_text())
    check = Draft202012Validator(schema)
    assert check.is_valid(pod)
    for path, key in (("spec", "hostNetwrk"), ("metadata", "lables")):
        assert not check.is_valid({**pod, path: {**pod[path], key: {}}})


def test_the_containers_image(host: Host) -> None:
    """Built nowhere here; but what it installs and calls is there."""
    text = (EXAMPLES / "Containerfile").read_text()
    installed = re.findall(
        r"apt-get install -y --no-install-recommends ([\w .-]+?)(?: &&|$)", text, re.MULTILINE
    )
    assert [set(words.split()) for words in installed] == [
        {"python3-venv", "gcc", "libc6-dev"},
        {"python3", "libatomic1"},
    ]
    readme = (HOUSE / "README.md").read_text()
    assert all(f"`{package}`" in readme for package in ("libatomic1", "gcc", "libc6-dev"))
    (shim,) = re.findall(r"^COPY --from=build \S+ (/\S+/xen-shim)$", text, re.MULTILINE)
    from xenpvd.vmm import boot

    assert any(Path(shim).match(pattern) for pattern in boot.SHIM_PATHS), "auto finds it"
    assert "ENV PATH=/opt/xenpvd/bin:" in text
    assert host.run(json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])).returncode == 0


# ---- systemd


def test_a_drop_in_for_one_guest(host: Host, tmp_path: Path) -> None:
    dropin = (EXAMPLES / "xenpvd@web1.conf").read_text()
    empty, command = re.findall(r"^ExecStart=(.*)$", dropin, re.MULTILINE)
    (limit,) = re.findall(r"^TimeoutStopSec=(\d+)$", dropin, re.MULTILINE)
    words = command.replace("%i", "web1").split()
    assert empty == "" and int(limit) >= stop_timeout(words) + 30
    unit = (HOUSE / "systemd/xenpvd@.service").read_text()
    (own,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert re.sub("--stop-timeout [0-9]+", "", command) == re.sub("--stop-timeout [0-9]+", "", own)
    (host.folder / "etc/xenpvd/web1.toml").write_text("")
    done = CliRunner().invoke(main, [host.here(word) for word in words[1:]])
    assert done.exit_code == 2 and "kernel" in done.stderr, "the definition is all it finds fault with"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze: apt install systemd")
    (tmp_path / "xenpvd@web1.service").write_text(re.sub("/usr/bin/xenpv(d|ctl)", "/bin/true", unit))
    shutil.copy(HOUSE / "systemd/xenpvd.target", tmp_path)
    folder = tmp_path / "xenpvd@web1.service.d"
    folder.mkdir()
    (folder / "local.conf").write_text(dropin.replace("/usr/bin/xenpvd", "/bin/true"))

    def verified() -> str:
        verify = ["systemd-analyze", "verify", str(tmp_path / "xenpvd@web1.service")]
        environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
        done = subprocess.run(verify, capture_output=True, text=True, check=False, env=environment)
        return done.stdout + done.stderr

    assert verified() == ""
    (folder / "local.conf").write_text(dropin.replace("CPUWeight", "CPUWait"))
    assert "CPUWait" in verified(), "it does look"
