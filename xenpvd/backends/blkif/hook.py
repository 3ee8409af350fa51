"""What pyproject.toml names: hatchling compiles native.c by this, for wheels and editable installations.

The package cannot be imported then, as what it needs is not there yet.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build = runpy.run_path(str(Path(__file__).with_name("build.py")))["build"]
        try:
            made = build()
        except RuntimeError as fault:
            self.app.display_warning(f"xen-block's fast data plane is not built: {fault}")
            return
        build_data["artifacts"].append(f"/{made.relative_to(self.root)}")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
