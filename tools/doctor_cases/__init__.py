"""Runs made with a known problem, and healthy ones, that the doctor is judged by."""
