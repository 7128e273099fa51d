"""Trackers of a run's curves and sample sheets: one file each, which imports its package when it is made."""
