"""Simulate how often intervals cover the truth."""
