"""Measure what the bundled base takes pictures for."""
