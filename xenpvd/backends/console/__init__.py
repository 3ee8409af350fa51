"""The PV console: the guest's hvc0, recorded from its first byte to its last and shared by many viewers."""
