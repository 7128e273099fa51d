"""Rules that find problems of a run: one function a problem, named after its finding."""
