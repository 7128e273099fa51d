"""Measure what the paper compares LoRA with, on the bundled base."""
