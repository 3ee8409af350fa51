"""The engine room: a KVM VM that looks like a Xen domain to what runs in it. ``machine.py`` is its face."""
