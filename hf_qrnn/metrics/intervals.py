"""Confidence intervals of shares."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(right: float, number: float, *, level: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's interval of a share: the shares that `right` of `number` speaks not against.

    Unlike a share and its standard error it stays within [0, 1], and is not a point at 0 and 1.
    Texts are taken to be drawn one by one; what another seed of the training changes is not in it.

    Args:
        right: The number of successes.
        number: The number of trials, at least 1.
        level: The share of such intervals that hold the true share, in (0, 1).
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, shrink = right / number, 1 + z * z / number
    middle = (share + z * z / (2 * number)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, middle - half), min(1.0, middle + half)
