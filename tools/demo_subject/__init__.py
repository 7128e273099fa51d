"""Teach the bundled base one character, with and without prior preservation, and measure both."""
