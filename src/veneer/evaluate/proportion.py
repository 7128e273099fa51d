"""Intervals of shares of pictures, and of their differences: right for few pictures, and for shares near all or none.

Several pictures of one prompt are not independent, so the unit is the prompt: of each the share of its pictures.
``tools/coverage/shares.py`` simulates how often the intervals cover the truth; where nearly all prompts agree they are
wider than they would have to be.
"""

from __future__ import annotations

import math

import numpy as np

from veneer.evaluate.interval import Values, t_quantile

__all__ = ["share_difference_interval", "share_interval"]

_PSEUDO = 2
"""Prompts that are added to a difference: half a prompt in each cell of the two answers (Agresti and Min 2005)."""


def share_interval(shares_N: Values, pictures: int = 1) -> tuple[float, float]:
    """Return the 95 % interval of a share over all prompts of which these are a sample.

    It is Wilson's (1927), for as many independent pictures as the spread between the prompts is worth (Kish 1965), with
    Student's quantile in place of the normal one.

    Args:
        shares_N: of each prompt's pictures, 0 to 1.
        pictures: number of pictures of each prompt.

    Returns:
        Both ends; 0 and 1 for a single prompt, which tells nothing of others.
    """
    count = len(shares_N)
    if count < 2:
        return 0.0, 1.0
    share, error2 = float(shares_N.mean()), float(shares_N.var(ddof=1)) / count
    worth = min(share * (1 - share) / error2, count * pictures) if error2 > 0 else count
    t2 = t_quantile(count - 1) ** 2
    middle = (share + t2 / (2 * worth)) / (1 + t2 / worth)
    half = math.sqrt(t2 * share * (1 - share) / worth + (t2 / (2 * worth)) ** 2) / (1 + t2 / worth)
    # in exact arithmetic the share lies between the ends, and is one of them where all pictures agree
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def share_difference_interval(differences_N: Values) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference of two shares, of the same prompts from the same seeds.

    It is that of Agresti and Min (2005, section 3), with Student's quantile.

    Args:
        differences_N: of each prompt's two shares, -1 to 1.

    Returns:
        Both ends; -1 and 1 for a single prompt.
    """
    count = len(differences_N)
    if count < 2:
        return -1.0, 1.0
    total = count + _PSEUDO
    mean = float(differences_N.sum()) / total
    variance = (float(np.square(differences_N).sum()) + 1) / total - mean**2
    half = t_quantile(count - 1) * math.sqrt(variance / total)
    return max(-1.0, mean - half), min(1.0, mean + half)
