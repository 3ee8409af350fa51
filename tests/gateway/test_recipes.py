"""What docs/gateway.md has root type for certificates works, also where OpenSSL is strict (Python 3.13)."""

from __future__ import annotations

import re
import ssl
import subprocess
from pathlib import Path

from tests.gateway.conftest import Host
from tests.gateway.openssl import needs_openssl
from tests.gateway.test_serving import comes_in, url
from xenpvd.gateway.serving import Serving, Settings

PAGE = Path(__file__).parents[2] / "docs/gateway.md"


def recipe(begin: str) -> str:
    """The commands of a block as a script, without those of a service."""
    (block,) = (
        text for text in re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if begin in text
    )
    lines = (re.sub(r"^# ", "", line) for line in block.splitlines() if not line.startswith("$ "))
    return "\n".join(line for line in lines if not line.startswith("systemctl ")) + "\n"


def type_in(folder: Path, script: str) -> None:
    done = subprocess.run(["sh", "-ec", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_openssl
async def test_a_ca_a_client_and_its_end(certificates: Path, tmp_path: Path, host: Host) -> None:
    file = tmp_path / "gateway.toml"
    tls = f'certificate = "{certificates}/host.crt"\nkey = "{certificates}/host.key"\n'
    file.write_text(f'listen = ["127.0.0.1:0"]\n[tls]\n{tls}')
    type_in(tmp_path, recipe("-keyout clients.key"))
    settings = Settings.read(file)
    assert settings.tls is not None
    settings.tls.verify_flags |= ssl.VERIFY_X509_STRICT
    serving = Serving(file, host.run_dir)
    await serving.take(settings)
    alice = ssl.create_default_context(cafile=f"{certificates}/ours.crt")
    alice.verify_flags &= ~ssl.VERIFY_X509_STRICT
    alice.load_cert_chain(tmp_path / "alice.crt", tmp_path / "alice.key")
    assert await comes_in(url(serving), alice)
    type_in(tmp_path, recipe("openssl ca -config"))
    settings = Settings.read(file)
    assert settings.tls is not None and settings.revoked
    settings.tls.verify_flags |= ssl.VERIFY_X509_STRICT
    await serving.take(settings)
    assert not await comes_in(url(serving), alice)
    type_in(tmp_path, ": > clients.index; openssl ca -config clients.cnf -gencrl -out clients.crl")
    await serving.reload()
    assert await comes_in(url(serving), alice), "it was the list that kept her out"
    await serving.stop()
