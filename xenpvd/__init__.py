"""xenpvd runs Xen PV guests on KVM. ``daemon.py`` is the front hall; ARCHITECTURE.md has the plan."""

from __future__ import annotations

__version__: str


def __getattr__(name: str) -> str:
    """``__version__``, looked up when it is first wanted: the client starts a third faster without."""
    if name == "__version__":
        from importlib.metadata import version

        globals()[name] = found = version("xenpvd")
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
