"""Where the rules draw their lines.

Set on the runs of ``python -m tools.illnesses`` whose names begin with ``fit-``; the runs that the doctor is judged by
have another choice of pictures, other held-out ones, other settings and another seed. Shares and ratios, so that they
carry over to other bases as far as anything does; what is decided by an interval needs no line at all.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "DEAD",
    "DESTROYED",
    "DIVERGED",
    "ERRORS",
    "FEW_PICTURES",
    "FEW_SHOWINGS",
    "FEW_STEPS",
    "HARMED",
    "KEPT",
    "LITTLE",
    "MANY_PICTURES",
    "OVERCOOKED",
    "SCORED_PICTURES",
    "SLOW",
    "TOLD_APART",
]

ERRORS: Final = 4.0
"""Standard errors that a difference in the loss curve must have."""
DIVERGED: Final = 1.15
"""The last quarter's loss over the best quarter's from which training is said to run away."""
LITTLE: Final = 0.06
"""Share of the base's loss below which a gain counts as little."""
KEPT: Final = 0.6
"""Share of the gain on training pictures that at least should be there on held-out ones."""
TOLD_APART: Final = 0.025
"""Share of the loss that an exchange of captions should add at least, once the pictures are learned."""
OVERCOOKED: Final = 0.25
"""|delta W| / |W0| of a text encoder from which it is another one, if its denoiser moved less."""
HARMED: Final = 0.01
"""Share of the loss that a part of the adapter must add to count as harm."""
DESTROYED: Final = 1.0
"""|delta W| / |W0| from which the adapter is no small change of the weights: it outweighs them."""
DEAD: Final = 1e-4
"""|delta W| / |W0| below which nothing can be seen of an adapter."""
SLOW: Final = 0.02
"""The same below which a long training has hardly moved its weights."""
FEW_STEPS: Final = 40
"""A training below this many steps has hardly begun, unless each picture was shown often."""
FEW_SHOWINGS: Final = 2.0
"""Showings of each picture below which a short training has hardly begun."""
FEW_PICTURES: Final = 5
"""Training pictures below which there is no telling what they have in common."""
MANY_PICTURES: Final = 30
"""From here on pictures show different things, so that one caption for all says nothing."""
SCORED_PICTURES: Final = 5
"""Held-out pictures below which a score's interval says little."""
