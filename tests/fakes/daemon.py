"""The command ``xenpvd``, a whole process, on machines without KVM: ``python tests/fakes/daemon.py OPTIONS``.

Its guests print a prompt, and shut down when they are asked to. SHIM in the environment is the shim that
``auto`` finds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fakes.machine import FakeMachine
from xenpvd import domain
from xenpvd.__main__ import main
from xenpvd.tasks import Tasks
from xenpvd.vmm import boot


class Obedient(FakeMachine):
    def start(self, paused: bool = False) -> None:
        super().start(paused)
        self._tasks = Tasks()
        self._tasks.spawn(self._live(), "guest")

    async def _live(self) -> None:
        self.guest_prints(b"Linux version 6.1\r\nlogin: ")
        await self.guest_obeys_shutdown()


if __name__ == "__main__":
    domain.Machine = Obedient  # type: ignore[misc, assignment]
    boot.SHIM_PATHS = (os.environ["SHIM"],)  # type: ignore[assignment]
    main()
