"""From pictures on disk to the draws of a step: sources, checks, decoding, and an order keyed by the seed."""
