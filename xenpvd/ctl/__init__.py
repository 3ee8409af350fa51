"""xenpvctl: a client of rpc.sock like any other. It starts fast: stdlib and click only, the rest where needed."""
