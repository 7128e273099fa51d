"""The results of the verbs, for a person at a terminal."""
