"""Benchmarks: figures, never assertions. ``python -m tests.bench.cluster`` prints the cluster's."""
