"""Rules that find what is wrong with a run: one function a problem."""
