"""Ways to rank hypotheses of different lengths in beam search.

Shapes: B sources, K candidates of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .generation import GenerationSettings
from .settings import require
from .weights import Array

RANKINGS = ("length_penalty", "paper")

_Integers = npt.NDArray[np.integer[Any]]
_Flags = npt.NDArray[np.bool_]


class Ranking(Protocol):
    """Scores of hypotheses from their sums of log-probabilities."""

    def score(self, sums: Array, step: int, ends: _Flags, sources: _Integers) -> Array:
        """Score candidates (B, K) of `sources` (B,), of `step` tokens and one more.

        `ends` (B, K) tells whether that one is an end token.
        """

    def hope(self, sums: Array, length: int, sources: _Integers) -> Array:
        """Bound the score (B,) of what goes on from beams with these sums and `length` tokens."""


class LengthPenalty:
    """The sum over `length ** length_penalty`, the end token counted, as in transformers.

    Args:
        settings: With `length_penalty` and `early_stopping`.
        limits: The most tokens of each source's target.
    """

    def __init__(self, settings: GenerationSettings, limits: Sequence[int]) -> None:
        self._settings, self._limits = settings, np.asarray(limits, float)

    def score(self, sums: Array, step: int, ends: _Flags, sources: _Integers) -> Array:
        """Score as `Ranking` says."""
        scores: Array = sums / np.float32(float(step + 1) ** self._settings.length_penalty)
        return scores

    def hope(self, sums: Array, length: int, sources: _Integers) -> Array:
        """Bound as transformers does: not always what is possible."""
        penalty = self._settings.length_penalty
        lengths = np.full(len(sums), float(length))
        if self._settings.early_stopping == "never" and penalty > 0:
            lengths = self._limits[sources]
        scores: Array = sums / (lengths**penalty).astype(np.float32)
        return scores


class PaperRanking:
    """Eq. 9 of arXiv 1611.01576 (appendix): the sum times a factor for targets that are short.

        log P_cand = [ product over t = T .. T_trg of (t + alpha) / t ] sum_i log p(w_i | w_<i)

    T is the number of characters of the target, T_trg that of the source and 5 more; behind T_trg
    the factor is 1. alpha = 0 is the plain sum, alpha = 1 makes the factor (T_trg + 1) / T.

    Paper: not said whether end tokens count, nor what an empty target is. Here: the sum is over the
    end token too, T and the source's length leave it out, and an empty target counts as one
    character.

    Args:
        alpha: At least 0.
        source_lengths: Tokens of each source, the end token left out.
        limits: The most tokens of each source's target.
    """

    def __init__(self, alpha: float, source_lengths: Sequence[int], limits: Sequence[int]) -> None:
        fits = isinstance(alpha, Real) and 0 <= alpha < np.inf
        require("alpha", "a number of at least 0", alpha, fits)
        longest = max(source_lengths, default=0) + 6  # behind T_trg the factor is 1
        self._wanted = np.asarray(source_lengths) + 5  # T_trg
        self._limits = np.asarray(limits)
        times = np.arange(1, longest + 1)
        # Of t = 1 .. n, at n: a factor is the difference of two.
        self._logs = np.concatenate([[0.0], np.cumsum(np.log((times + alpha) / times))])

    def score(self, sums: Array, step: int, ends: _Flags, sources: _Integers) -> Array:
        """Score as `Ranking` says."""
        lengths = np.where(ends, step, step + 1)
        factors = self._factors(lengths, self._wanted[sources][:, None])
        scores: Array = (sums * factors).astype(np.float32)
        return scores

    def hope(self, sums: Array, length: int, sources: _Integers) -> Array:
        """Bound by what a target of the full length would have, were its other tokens certain."""
        factors = self._factors(self._limits[sources], self._wanted[sources])
        scores: Array = (sums * factors).astype(np.float32)
        return scores

    def _factors(self, lengths: _Integers, wanted: _Integers) -> Array:
        before = np.minimum(np.maximum(lengths, 1) - 1, wanted)
        factors: Array = np.exp(self._logs[wanted] - self._logs[before])
        return factors
