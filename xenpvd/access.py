"""Who may do what: the role of who connects, by what the kernel says of them (SO_PEERCRED, SO_PEERGROUPS)."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from typing import Literal, get_args

from xenpvd.config import AccessConfig
from xenpvd.errors import BadConfig
from xenpvd.sockets import Credentials

#: Each may do what those before it may: look; steer the guest and its devices; all else.
Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

#: The role of a peer; None: it may nothing.
RoleOf = Callable[[Credentials], Role | None]


def everything(peer: Credentials) -> Role | None:
    """For a socket whose file mode says who may connect."""
    return "admin"


def covers(role: Role, need: Role) -> bool:
    return ROLES.index(role) >= ROLES.index(need)


class Access:
    """A definition's ``[access]``. Without one the files' modes decide: who can connect may do everything,
    or, at a socket for looking, look. With one anybody can connect, and these have a role: uid 0 and the
    daemon's user (admin), and who is listed."""

    def __init__(self, config: AccessConfig) -> None:
        """Raises :class:`BadConfig` for users and groups that this host does not know."""
        problems: list[tuple[str, str]] = []
        self.config = config
        self._users: dict[int, Role] = {}
        self._groups: dict[int, Role] = {}
        self.restricted = config != AccessConfig()
        for role in ROLES:  # the highest last: it counts
            for n, name in enumerate(getattr(config, role)):
                kind, _, who = name.partition(":")
                table, find = (self._users, _uid) if kind == "user" else (self._groups, _gid)
                try:
                    table[find(who)] = role
                except (KeyError, OverflowError):
                    problems.append((f"access.{role}.{n}", f"there is no {kind} {who} on this host"))
        if problems:
            what = "; ".join(f"{place}: {why}" for place, why in problems)
            raise BadConfig(f"cannot use the definition: {what}. Make it, or leave it out.", problems)
        self._users |= {0: "admin", os.geteuid(): "admin"}

    def become(self, other: Access) -> None:
        """Who connects from now on has the role that ``other`` would give."""
        self.config, self.restricted = other.config, other.restricted
        self._users, self._groups = other._users, other._groups

    def role(self, peer: Credentials) -> Role | None:
        if not self.restricted:
            return everything(peer)
        groups = {peer.gid, *peer.groups}
        roles = [role for gid, role in self._groups.items() if gid in groups]
        if peer.uid in self._users:
            roles.append(self._users[peer.uid])
        return max(roles, key=ROLES.index, default=None)

    def look(self, peer: Credentials) -> Role | None:
        """At a socket for looking nobody is more than a viewer."""
        return None if self.role(peer) is None else "viewer"


def _uid(name: str) -> int:
    return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
