"""The verbs of the command line as functions, without a terminal."""
