"""Adapters in memory: their methods, in live networks, merged, stacked, cut to lower ranks."""
