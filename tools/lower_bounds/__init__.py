"""Runs the tests with the oldest releases that pyproject.toml allows."""
