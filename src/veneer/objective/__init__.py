"""The loss: what a noise process asks for x density of times x weighting."""
