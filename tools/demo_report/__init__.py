"""The run whose report the documents show, and how long it takes to measure it."""
