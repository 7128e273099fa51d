"""Ready-made studies, for ``veneer study NAME --config CONFIG``."""
