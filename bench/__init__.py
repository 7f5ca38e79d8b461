"""Benchmarks against peers and the machine's own limit; commands, off by default."""
