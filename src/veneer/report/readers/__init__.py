"""Readers of what a report shows: one file for each part of a run's folder."""
