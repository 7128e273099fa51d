"""How often intervals cover the truth, where the truth is known."""
