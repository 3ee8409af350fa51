"""Benchmarks: xenpvd and a peer in the same run, on the same machine, taking turns."""
