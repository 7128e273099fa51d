"""The loss: parameterisation x density of timesteps x weighting."""
