"""Prompts to pictures, and sheets of pictures."""
