"""Measure what the example's adapter does on the demo style."""
