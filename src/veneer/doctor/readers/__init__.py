"""Readers of what a run left behind: one file for each part of its folder."""
