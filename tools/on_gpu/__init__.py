"""Check and measure Veneer on a machine with one CUDA GPU and no network, in a few minutes that are prepared for."""
