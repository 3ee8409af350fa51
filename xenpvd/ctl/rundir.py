"""Where guests are: RUN_DIR/NAME/rpc.sock, and what to say when nobody is there."""

from __future__ import annotations

from pathlib import Path

from xenpvd.ctl.client import Client, NoAnswer
from xenpvd.paths import NAME


class NoGuest(Exception):
    """There is no daemon of that name, or it is dead."""


def misnamed(name: object) -> str:
    """Why :data:`NAME` does not take ``name``."""
    return (
        f"no guest can be called {name!r}: names take a-z, 0-9, '.', '_' and '-', begin with a letter or "
        "digit, and have 63 characters at most."
    )


class RunDir:
    """The runtime directory: a folder for each guest, with its socket and the log of its start."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def socket(self, name: str) -> Path:
        return self.path / name / "rpc.sock"

    def log(self, name: str) -> Path:
        return self.path / name / "xenpvd.log"

    def lock(self, name: str) -> Path:
        return self.path / name / "lock"

    def names(self) -> list[str]:
        """Guests that have a socket, dead or alive."""
        return sorted(path.parent.name for path in self.path.glob("*/rpc.sock"))

    def connect(self, name: str, timeout: float = 5.0) -> Client:
        """At the socket for looking, if the other one is not for this user. Raises :class:`NoGuest`,
        PermissionError and :class:`NoAnswer` with a message for people."""
        path = self.socket(name)
        if not NAME.fullmatch(name):
            raise NoGuest(misnamed(name))
        try:
            try:
                return Client.connect(path, timeout)
            except PermissionError:
                return Client.connect(path.with_name("rpc-ro.sock"), timeout)
        except FileNotFoundError:
            raise NoGuest(
                f"no guest called {name}: {path} is missing. Start it with: xenpvctl start {name}"
            ) from None
        except ConnectionRefusedError:
            raise NoGuest(
                f"{name} is dead: nobody answers at {path} (its daemon was killed). "
                f"Start it again with: xenpvctl start {name}"
            ) from None
        except PermissionError:
            raise PermissionError(
                f"cannot reach {name}: no permission for {path}. Use sudo, or join the group that owns it."
            ) from None
        except NoAnswer as fault:
            raise NoAnswer(f"cannot reach {name} at {path}: {fault}.") from None
        except OSError as fault:
            raise NoGuest(f"cannot reach {name} at {path}: {fault.strerror or fault}.") from None
