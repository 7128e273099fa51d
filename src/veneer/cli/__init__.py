"""The command line: the composition root, where everything below is put together for a person at a terminal."""
