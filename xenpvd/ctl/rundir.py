"""Where guests are: RUN_DIR/NAME/rpc.sock, and what to say when nobody is there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from xenpvd import paths
from xenpvd.ctl.client import Client, NoAnswer
from xenpvd.paths import NAME, open_regular


class NoGuest(Exception):
    """There is no daemon of that ``name``, or it is dead."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


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

    def link(self, name: str) -> Path:
        """To the file that it was started from."""
        return self.path / name / "definition"

    def names(self) -> list[str]:
        """Guests that have a socket, dead or alive, as far as this user may see. Raises PermissionError."""
        return self._look()[0]

    def unseen(self) -> str | None:
        """What :meth:`names` does not tell, and why."""
        closed = self._look()[1]
        if not closed:
            return None
        count = f"{len(closed)} guest{'s' if len(closed) > 1 else ''}"
        why = f"no permission for {', '.join(str(self.path / name) for name in closed)}"
        return f"{count} not listed: {why}. Use sudo, or join the group that owns it."

    def _look(self) -> tuple[list[str], list[str]]:
        """Those with a socket, and those whose folders this user may not look into."""
        found, closed = [], []
        for name in self._folders():
            try:
                self.socket(name).lstat()
                found.append(name)
            except PermissionError:
                closed.append(name)
            except OSError:
                pass
        return found, closed

    def _folders(self) -> list[str]:
        try:
            return sorted(path.name for path in self.path.iterdir())
        except PermissionError:
            raise PermissionError(f"cannot look into {self.path}: no permission. Use sudo.") from None
        except (FileNotFoundError, NotADirectoryError):
            return []

    def definition(self, name: str) -> Path | None:
        """What ``start NAME`` starts: NAME.toml among the definitions, else the file it was started from."""
        if (file := paths.definition(name)) is not None:
            return file
        return self.remembered(name)

    def remembered(self, name: str) -> Path | None:
        """The file that it was last started from, which may have gone. One that somebody else names would
        have us run what they like; in a folder of theirs each look may find another link."""
        unread = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        with ExitStack() as stack, suppress(OSError):
            folder = os.open(self.link(name).parent, unread | os.O_DIRECTORY)
            stack.callback(os.close, folder)
            link = os.open(self.link(name).name, unread, dir_fd=folder)
            stack.callback(os.close, link)
            if {os.fstat(fd).st_uid for fd in (folder, link)} == {os.geteuid()}:
                return Path(os.readlink("", dir_fd=link))
        return None

    def definitions(self) -> list[str]:
        """The names of all that can be started by name."""
        started = (name for name in self._folders() if NAME.fullmatch(name) and self.definition(name))
        return sorted({*paths.definitions(), *started})

    def remember(self, name: str, file: Path) -> None:
        """It was started from ``file``, and may be again."""
        with suppress(OSError):  # a folder of somebody else's
            self.link(name).unlink(missing_ok=True)
            self.link(name).symlink_to(file)

    def tidy(self, name: str, left: Iterable[Path] = ()) -> None:
        """Remove ``left`` of a daemon that ended, and its folder if there is no more; not if another one has
        the name now, which holds the lock."""
        lock = self.lock(name)
        held = None
        with ExitStack() as stack, suppress(OSError):
            with suppress(FileNotFoundError):  # it ended before it made one
                held = open_regular(lock, os.O_RDONLY, 0)
                stack.callback(os.close, held)
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: a guest lives there
            for path in left:
                path.unlink(missing_ok=True)
            if held is not None and list(lock.parent.iterdir()) == [lock]:
                lock.unlink()  # a daemon that gets it now sees that it has gone, and makes a new one
            lock.parent.rmdir()

    def connect(self, name: str, timeout: float = 5.0) -> Client:
        """At the socket for looking, if the other one is not for this user. Raises :class:`NoGuest`,
        PermissionError and :class:`NoAnswer` with a message for people."""
        path = self.socket(name)
        if not NAME.fullmatch(name):
            raise NoGuest(misnamed(name), name)
        try:
            try:
                return Client.connect(path, timeout)
            except PermissionError:
                return Client.connect(path.with_name("rpc-ro.sock"), timeout)
        except FileNotFoundError:
            what = f"no guest called {name}" if self.definition(name) is None else f"{name} is off"
            raise NoGuest(f"{what}: {path} is missing. {self._cure(name)}", name) from None
        except ConnectionRefusedError:
            raise NoGuest(
                f"{name} is dead: nobody answers at {path} (its daemon was killed). {self._cure(name)}", name
            ) from None
        except PermissionError:
            raise PermissionError(
                f"cannot reach {name}: no permission for {path}. Use sudo, or join the group that owns it."
            ) from None
        except NoAnswer as fault:
            raise NoAnswer(f"cannot reach {name} at {path}: {fault}.") from None
        except OSError as fault:
            raise NoGuest(f"cannot reach {name} at {path}: {fault.strerror or fault}.", name) from None

    def _cure(self, name: str) -> str:
        if (file := self.definition(name)) is not None and not gone(file):
            return f"Start it with: xenpvctl start {name}"
        if Path(f"{name}.toml").exists():
            return f"Start it with: xenpvctl start ./{name}.toml"
        if file is not None:
            return f"It was last started from {file}, which is gone. Give its file: xenpvctl start FILE.toml"
        return "Those that are there: xenpvctl list. Start it with its TOML file: xenpvctl start FILE.toml"


def gone(file: Path) -> bool:
    """Not if it is just not for us to see."""
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
