"""xenpvd runs Xen PV guests on KVM. ``daemon.py`` is the front hall; ARCHITECTURE.md has the plan."""

from importlib.metadata import version

__version__ = version("xenpvd")
