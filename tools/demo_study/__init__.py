"""Publish the demo style's studies in the documents."""
