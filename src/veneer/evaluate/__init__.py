"""Measurements of what an adapter does, on pictures it never saw."""
