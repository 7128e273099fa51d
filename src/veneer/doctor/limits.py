"""Limits of the rules.

They were chosen on the runs of ``python -m tools.doctor_cases`` whose names begin with ``fit-``; the runs that judge
the doctor have another choice of pictures, other held-out pictures, other settings and another seed. All are shares and
ratios, so that they carry over to other bases as far as anything does; what an interval decides needs no limit.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CAPTION_EFFECT",
    "DEAD_RATIO",
    "DESTROYED_RATIO",
    "DIVERGED_RATIO",
    "FEW_EPOCHS",
    "FEW_PICTURES",
    "FEW_SCORED_PICTURES",
    "FEW_STEPS",
    "HARMFUL_SHARE",
    "KEPT_GAIN",
    "LITTLE_GAIN",
    "LOSS_ERRORS",
    "MANY_PICTURES",
    "OVERCOOKED_RATIO",
    "UNMOVED_RATIO",
]

LOSS_ERRORS: Final = 4.0
"""Standard errors that a difference in the loss curve must have."""
DIVERGED_RATIO: Final = 1.15
"""Loss of the last quarter over that of the best quarter from which training counts as diverged."""
LITTLE_GAIN: Final = 0.06
"""Share of the base's loss below which a gain counts as little."""
KEPT_GAIN: Final = 0.6
"""Share of the gain on training pictures that held-out pictures should gain at least."""
CAPTION_EFFECT: Final = 0.025
"""Share of the loss that shuffled captions should add at least, once the pictures are learned."""
OVERCOOKED_RATIO: Final = 0.25
"""|delta W| / |W0| from which a text encoder counts as overcooked, if the denoiser moved less."""
HARMFUL_SHARE: Final = 0.01
"""Share of the loss that a part of the adapter must add to count as harmful."""
DESTROYED_RATIO: Final = 1.0
"""|delta W| / |W0| from which the adapter outweighs the weights it is added to."""
DEAD_RATIO: Final = 1e-4
"""|delta W| / |W0| below which an adapter has no visible effect."""
UNMOVED_RATIO: Final = 0.02
"""|delta W| / |W0| below which a long training has hardly moved the weights."""
FEW_STEPS: Final = 40
"""Number of steps below which a training has hardly begun, unless it showed each picture often."""
FEW_EPOCHS: Final = 2.0
"""Number of epochs below which a short training has hardly begun."""
FEW_PICTURES: Final = 5
"""Number of training pictures below which there is no telling what they have in common."""
MANY_PICTURES: Final = 30
"""Number of pictures from which on they show different things, so that one caption for all says nothing."""
FEW_SCORED_PICTURES: Final = 5
"""Number of held-out pictures below which a score's interval says little."""
