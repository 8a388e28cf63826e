"""Draws targets as transformers samples them, by numbers of its own that a seed gives again.

The probabilities are those of transformers' logits processors: the scores, changed by
`repetition_penalty` and `no_repeat_ngram_size`, over the temperature; then the `top_k` likeliest
tokens; of these the fewest whose probabilities add up to `top_p`.

A draw takes the first token at which the sum of the probabilities, in the order of the ids, passes
a number u in [0, 1). Each sample of each text has a sequence of such numbers of its own, Philox
(4 x 64, 10 rounds) with the key that NumPy's SeedSequence makes of the seed, the text's number and
the sample's number. So a result does not depend on batches, threads or other texts. It is not what
torch draws with the same seed.

Shapes: B sources, M samples of each, R = B * M rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from hf_qrnn.data.translations import Hypothesis

from .equations import softmax
from .generation import GenerationSettings
from .search import Decoder, Found, changes, hypothesis, likelihoods, with_start
from .settings import require
from .weights import Array

_LOW = 1e-3  # a temperature
_LEAST = np.float32(1e-38)


@dataclass(frozen=True)
class Sampling:
    """The probabilities to draw from, and the numbers to draw by.

    Attributes:
        seed: At least 0.
        temperature: Positive; below 1 favours what is likely.
        top_k: Tokens to draw from, and all that are as likely as the last of them; 0 is all.
        top_p: In (0, 1]; 1 is all.
        first: The number of the first text, at least 0: texts that are translated in parts are
            drawn as if in one.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    first: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("seed", "top_k", "first"):
            value = getattr(self, name)
            is_whole = isinstance(value, Integral) and not isinstance(value, bool)
            require(name, "an integer of at least 0", value, is_whole and value >= 0)
            object.__setattr__(self, name, int(value))  # of NumPy's
        warmth, share = self.temperature, self.top_p
        fits = isinstance(warmth, Real) and 0 < warmth < math.inf
        require("temperature", "positive", warmth, fits)
        require("top_p", "in (0, 1]", share, isinstance(share, Real) and 0 < share <= 1)


def warp(scores: Array, sampling: Sampling) -> Array:
    """Return scores (R, V) with -inf for what is not drawn, as transformers' processors do."""
    if sampling.temperature < _LOW:
        # The likeliest at 0, lest it becomes infinite; the others may.
        scores = scores - scores.max(axis=1, keepdims=True)
    if sampling.temperature != 1:
        scores = scores / max(np.float32(sampling.temperature), _LEAST)
    if sampling.top_k:
        most = min(sampling.top_k, scores.shape[1])
        least = np.partition(scores, -most, axis=1)[:, -most, None]
        scores = np.where(scores < least, -np.inf, scores).astype(np.float32)
    if sampling.top_p < 1:
        order = np.argsort(scores, axis=1, kind="stable")
        ordered = softmax(np.take_along_axis(scores, order, 1))
        is_out = np.cumsum(ordered, axis=1) <= np.float32(1 - sampling.top_p)
        is_out[:, -1] = False  # the likeliest
        removed = np.zeros_like(is_out)
        np.put_along_axis(removed, order, is_out, 1)
        scores = np.where(removed, -np.inf, scores).astype(np.float32)
    return scores


def sample(
    decoder: Decoder,
    settings: GenerationSettings,
    limits: Sequence[int],
    num_samples: int,
    sampling: Sampling,
    numbers: Sequence[int],
) -> list[list[Hypothesis]]:
    """Draw targets of every source, in the order of their drawing.

    Their log-probabilities are the model's own: before temperature, `top_k` and `top_p`.

    Args:
        decoder: Over `len(limits)` sources, `num_samples` rows of each.
        settings: What to search for.
        limits: The most tokens of each source's target.
        num_samples: Targets of a source.
        sampling: What to draw from.
        numbers: The number of each source's text.

    Raises:
        ValueError: If the model computes NaN.
    """
    change, longest, each = changes(settings), max(limits), np.arange(num_samples)
    draws = [_Draws(sampling, number, at) for number in numbers for at in each.tolist()]
    num = len(draws)
    ids: list[list[int]] = [[] for _ in range(num)]  # a limit may be far behind the end
    tokens, lengths, sums = np.full(num, settings.start), np.zeros(num, np.int64), np.zeros(num)
    is_open, of_rows = np.ones(num, bool), np.repeat(limits, num_samples)
    active = np.arange(len(limits))
    for step in range(longest):
        rows = (active[:, None] * num_samples + each).reshape(-1)
        scores = decoder.step(tokens[rows])
        if change is not None:
            scores = change(with_start(settings, [ids[row] for row in rows]), scores)
        own = likelihoods(scores)
        totals = np.cumsum(softmax(warp(scores, sampling)), axis=1, dtype=np.float64)
        tokens[rows] = 0
        for at, row in enumerate(rows):
            # A row that has ended goes on as the others of its source do, and nobody looks.
            if is_open[row]:
                tokens[row] = token = draws[row].token(totals[at])
                lengths[row] = step + 1
                sums[row] += own[at, token]
            ids[row].append(int(tokens[row]))
        is_open[rows] &= ~np.isin(tokens[rows], settings.ends) & (step + 1 < of_rows[rows])
        goes_on = is_open[rows].reshape(-1, num_samples).any(1)
        if not goes_on.all():
            kept = np.flatnonzero(goes_on)
            active = active[kept]
            if not len(active):
                break
            decoder.select((kept[:, None] * num_samples + each).reshape(-1), kept)
    rows_found = zip(ids, lengths.tolist(), sums.tolist(), of_rows.tolist(), strict=True)
    found = [
        hypothesis(Found(row[:length], total, total), settings.ends, limit)
        for row, length, total, limit in rows_found
    ]
    return [found[at : at + num_samples] for at in range(0, num, num_samples)]


class _Draws:
    """The numbers of one sample, and what they draw."""

    def __init__(self, sampling: Sampling, number: int, sample: int) -> None:
        seeds = np.random.SeedSequence([sampling.seed, sampling.first + number, sample])
        self._bits = np.random.Philox(seeds)

    def token(self, totals: Array) -> int:
        """Draw a token by the running sums of probabilities (V,)."""
        # The upper 53 bits, here and not by `Generator`, whose ways may change.
        u = (int(self._bits.random_raw()) >> 11) * 2.0**-53
        token = int(np.searchsorted(totals, u * totals[-1], side="right"))
        # The sum is rounded: behind the last token that can be drawn there is none.
        return min(token, int(np.searchsorted(totals, totals[-1], side="left")))
