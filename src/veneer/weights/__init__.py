"""Adapter files: read and written with every tensor accounted for, and the card beside them."""
