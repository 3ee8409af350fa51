"""Every async test here runs on both loops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop


@pytest.hookimpl(optionalhook=True)  # of pytest-asyncio, since 1.5
def pytest_asyncio_loop_factories() -> dict[str, Any]:
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
