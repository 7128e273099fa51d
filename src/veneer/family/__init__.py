"""Families of base models: what differs between them, each in one file."""
