"""One training run in a folder of its own: its session, and all that the session uses."""
