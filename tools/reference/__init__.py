"""The configuration reference, written from the schema."""
