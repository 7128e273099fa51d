"""Benchmarks against what others do: each script is one command, each figure a ratio within one run."""
