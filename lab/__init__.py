"""A KVM host with Xen support on any machine, and the demo guest. Not part of the wheel: see docs/lab.md."""
