"""xenpvctl: a client of rpc.sock like any other. It starts fast: only stdlib and click before a verb runs."""
