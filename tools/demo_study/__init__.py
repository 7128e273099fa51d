"""The demo style's studies, published in the documents."""
