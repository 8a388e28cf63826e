"""Greedy and beam search over a decoder's steps; the hypotheses are those of `generate()`.

Every source is searched for itself: a source that is done is dropped, and none waits for its
neighbours.

Shapes: B sources, M beams, R = B * M rows, T steps so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hf_qrnn.data.translations import Hypothesis

from .equations import log_softmax
from .generation import GenerationSettings
from .ranking import LengthPenalty, Ranking
from .weights import Array

Ids = npt.NDArray[np.integer[Any]]
_NAN = "`model` must give numbers, but gives NaN: its weights are damaged, or too large."
_NEVER = np.float32(-1e9)  # what transformers subtracts from what must not be chosen


class Decoder(Protocol):
    """Rows of state that go on token by token: what is searched."""

    def step(self, tokens: Ids) -> Array:
        """Read a token of each row (R,) and return the logits of the next (R, V)."""

    def select(self, rows: Ids, sources: Ids | None = None) -> None:
        """Go on with `rows` of the state, and where given with `sources` of the memory only."""


class Found(NamedTuple):
    """A hypothesis as a search finds it.

    Attributes:
        ids: Its ids, the end token included.
        score: What it is ranked by.
        log_probability: The sum over its tokens.
    """

    ids: list[int]
    score: float
    log_probability: float


def search(
    decoder: Decoder,
    settings: GenerationSettings,
    limits: Sequence[int],
    num_beams: int,
    num_return_sequences: int,
    ranking: Ranking | None = None,
) -> list[list[Hypothesis]]:
    """Search for the best targets of every source.

    Args:
        decoder: Over `len(limits)` sources, `num_beams` rows of each.
        settings: What to search for.
        limits: The most tokens of each source's target.
        num_beams: 1 is greedy search.
        num_return_sequences: Hypotheses a source, best first.
        ranking: Of hypotheses in beam search; None is the length penalty of `settings`.

    Raises:
        ValueError: If the model computes NaN.
    """
    if num_beams == 1:
        found = [[one] for one in _greedy(decoder, settings, np.asarray(limits))]
    else:
        ranking = LengthPenalty(settings, limits) if ranking is None else ranking
        beams = _BeamSearch(decoder, settings, np.asarray(limits), num_beams, ranking)
        found = beams.run(num_return_sequences)
    return [
        [hypothesis(one, settings.ends, limit) for one in some]
        for some, limit in zip(found, limits, strict=True)
    ]


def likelihoods(logits: Array) -> Array:
    """Return log-probabilities (R, V) of logits.

    Raises:
        ValueError: If there is NaN among them.
    """
    logs = log_softmax(logits)
    # One NaN makes its whole row NaN. No comparison with it is true: what a search finds is chance.
    if np.isnan(logs[:, 0]).any():
        raise ValueError(_NAN)
    return logs


def hypothesis(found: Found, ends: Sequence[int], limit: int) -> Hypothesis:
    """Make the result of what a search found."""
    ids = [token for token in found.ids if token not in ends]
    return Hypothesis(ids, found.score, len(ids) >= limit, found.log_probability)


# ------------------------------------------------------------------ greedy search


def _greedy(decoder: Decoder, settings: GenerationSettings, limits: Ids) -> list[Found]:
    """Take the likeliest token at every step."""
    change = changes(settings)
    in_one_call = getattr(decoder, "greedy", None)
    if in_one_call is not None and change is None:
        found = in_one_call(settings.start, settings.ends, limits)
        if found is None:
            raise ValueError(_NAN)
        return _rows(*found)
    num = len(limits)
    ids: list[list[int]] = [[] for _ in range(num)]  # a limit may be far behind the end
    scores, active = np.zeros(num), np.arange(num)
    tokens = np.full(num, settings.start)
    for step in range(int(limits.max())):
        logits = decoder.step(tokens)
        if change is not None:
            logits = change(with_start(settings, [ids[row] for row in active]), logits)
        tokens = logits.argmax(axis=1)
        scores[active] += likelihoods(logits)[np.arange(len(active)), tokens]
        for row, token in zip(active, tokens.tolist(), strict=True):
            ids[row].append(token)
        goes_on = ~np.isin(tokens, settings.ends) & (step + 1 < limits[active])
        if not goes_on.all():
            kept = np.flatnonzero(goes_on)
            active, tokens = active[kept], tokens[kept]
            if not len(active):
                break
            decoder.select(kept, kept)
    found = zip(ids, scores.tolist(), strict=True)
    return [Found(row, score, score) for row, score in found]


def follow(
    decoder: Decoder, settings: GenerationSettings, limit: int
) -> Iterator[tuple[int, float]]:
    """Yield the likeliest tokens of one source as they come, each with its log-probability.

    Args:
        decoder: Over one source with one row.
        settings: What to search for.
        limit: The most tokens.

    Raises:
        ValueError: If the model computes NaN.
    """
    change, ids = changes(settings), [settings.start]
    while len(ids) <= limit:
        # Not around the loop: the reader's own numbers are no business of ours.
        with np.errstate(over="ignore", invalid="ignore"):
            logits = decoder.step(np.array(ids[-1:]))
            if change is not None:
                logits = change(np.array([ids]), logits)
            token = int(logits[0].argmax())
            log_probability = float(likelihoods(logits)[0, token])
        ids.append(token)
        yield token, log_probability
        if token in settings.ends:
            return


def _rows(ids: Ids, lengths: Ids, scores: npt.NDArray[np.float64]) -> list[Found]:
    rows = zip(ids, lengths, scores, strict=True)
    return [Found(row[:length].tolist(), float(score), float(score)) for row, length, score in rows]


# ------------------------------------------------------------------ beam search


class _BeamSearch:
    """Beam search as transformers has it.

    The best candidates of a source that do not end go on as its beams. Those that end are kept if
    they are among the best M by the ranking. A source is done when
    its best beam cannot become better than its worst kept hypothesis.

    Tokens and the beams they follow are kept for each step; a hypothesis is its last token and
    the beam that one follows, from which it is read backwards in the end.
    """

    def __init__(
        self,
        decoder: Decoder,
        settings: GenerationSettings,
        limits: Ids,
        num_beams: int,
        ranking: Ranking,
    ) -> None:
        self._decoder, self._settings = decoder, settings
        self._limits, self._num_beams, self._ranking = limits, num_beams, ranking
        num = len(limits)
        self._tokens: list[Ids] = []  # of each step (B, M), of all sources
        self._parents: list[Ids] = []
        # Of each kept hypothesis: its score, its sum of log-probabilities, whether it is one, its
        # length, its last token and the beam that one follows.
        shape = (num, num_beams)
        self._kept_scores = np.full(shape, _NEVER, np.float32)
        self._kept_sums = np.full(shape, _NEVER, np.float32)
        self._is_kept = np.zeros(shape, bool)
        self._kept_ends = np.zeros((*shape, 3), np.int64)
        self._change = changes(settings)
        # Only what changes scores by the tokens so far needs these.
        self._sequences = np.full((num, num_beams, 1), settings.start)

    def run(self, num_return: int) -> list[list[Found]]:
        """Search, and return the best hypotheses of every source."""
        num, beams = len(self._limits), self._num_beams
        active = np.arange(num)
        tokens = np.full((num, beams), self._settings.start)
        scores = np.full((num, beams), _NEVER, np.float32)
        scores[:, 0] = 0  # else all beams would be the same
        for step in range(int(self._limits.max())):
            totals = self._totals(self._decoder.step(tokens.reshape(-1)), scores, active)
            best = self._candidates(totals)  # (B, K)
            vocab = totals.shape[1] // beams
            values = np.take_along_axis(totals, best, 1)
            parents, ids = best // vocab, best % vocab
            hits = np.isin(ids, self._settings.ends) | (step + 1 >= self._limits[active])[:, None]
            self._keep(step, active, values, np.stack([ids, parents], 2), hits)
            open_values = values + hits * _NEVER
            chosen = _best(open_values, beams)
            scores = np.take_along_axis(open_values, chosen, 1)
            parents, tokens = (np.take_along_axis(x, chosen, 1) for x in (parents, ids))
            self._record(active, tokens, parents)
            goes_on = self._goes_on(step + 1, active, scores)
            rows = parents + np.arange(len(active))[:, None] * beams
            kept = np.flatnonzero(goes_on)
            if not len(kept):
                break
            if len(kept) == len(active):
                self._decoder.select(rows.reshape(-1))
            else:
                self._decoder.select(rows[kept].reshape(-1), kept)
                active, tokens, scores = active[kept], tokens[kept], scores[kept]
        return [self._read(source, num_return) for source in range(num)]

    def _totals(self, logits: Array, scores: Array, active: Ids) -> Array:
        """Return the score of every candidate (B, M * V)."""
        totals = likelihoods(logits)
        if self._change is not None:
            seen = self._sequences[active]
            totals = self._change(seen.reshape(-1, seen.shape[2]), totals)
        rows, beams = scores.shape
        return (totals.reshape(rows, beams, -1) + scores[:, :, None]).reshape(rows, -1)

    def _candidates(self, totals: Array) -> Ids:
        """Return the best candidates, as many as leave M that go on if all ends are among them."""
        return _best(totals, max(2, 1 + len(self._settings.ends)) * self._num_beams)

    def _keep(
        self, step: int, active: Ids, values: Array, ends: Ids, hits: npt.NDArray[np.bool_]
    ) -> None:
        """Keep the candidates that ended, if they are better than what is kept."""
        # The other candidates are there only so that beams go on.
        is_new = hits & (np.arange(values.shape[1]) < self._num_beams)
        if not is_new.any():
            return
        is_end = np.isin(ends[:, :, 0], self._settings.ends)
        sums = np.concatenate([self._kept_sums[active], values], axis=1)
        values = self._ranking.score(values, step, is_end, active)
        values = values + ~is_new * _NEVER
        lengths = np.full((*values.shape, 1), step + 1)
        merged = np.concatenate([self._kept_scores[active], values], axis=1)
        chosen = _best(merged, self._num_beams)
        self._kept_scores[active] = np.take_along_axis(merged, chosen, 1)
        self._kept_sums[active] = np.take_along_axis(sums, chosen, 1)
        flags = np.concatenate([self._is_kept[active], is_new], axis=1)
        self._is_kept[active] = np.take_along_axis(flags, chosen, 1)
        places = np.concatenate(
            [self._kept_ends[active], np.concatenate([lengths, ends], axis=2)], axis=1
        )
        self._kept_ends[active] = np.take_along_axis(places, chosen[:, :, None], 1)

    def _record(self, active: Ids, tokens: Ids, parents: Ids) -> None:
        for steps, values in ((self._tokens, tokens), (self._parents, parents)):
            of_all = np.zeros((len(self._limits), self._num_beams), np.int32)
            of_all[active] = values
            steps.append(of_all)
        if self._change is not None:
            sequences = np.zeros((*self._sequences.shape[:2], len(self._tokens) + 1), np.int64)
            sequences[active, :, :-1] = np.take_along_axis(
                self._sequences[active], parents[:, :, None], 1
            )
            sequences[active, :, -1] = tokens
            self._sequences = sequences

    def _goes_on(self, length: int, active: Ids, scores: Array) -> npt.NDArray[np.bool_]:
        """Tell which sources are not done after `length` tokens."""
        settings, limits = self._settings, self._limits[active]
        hoped = self._ranking.hope(scores[:, 0], length, active)
        kept, is_kept = self._kept_scores[active], self._is_kept[active]
        worst = np.where(is_kept, kept.min(1, keepdims=True), _NEVER)
        goes_on = (hoped[:, None] > worst).any(1) & (length < limits)
        if settings.early_stopping is True:
            goes_on &= ~is_kept.all(1)
        return goes_on

    def _read(self, source: int, num: int) -> list[Found]:
        """Read the best hypotheses of a source, from their last tokens backwards."""
        found = []
        for beam in range(num):
            length, token, parent = map(int, self._kept_ends[source, beam])
            ids = [token]
            for step in range(length - 2, -1, -1):
                ids.append(int(self._tokens[step][source, parent]))
                parent = int(self._parents[step][source, parent])
            score, total = self._kept_scores[source, beam], self._kept_sums[source, beam]
            found.append(Found(ids[::-1], float(score), float(total)))
        return found


def _best(values: Array, num: int) -> Ids:
    """Return the places of the `num` largest values of each row, the largest first."""
    num = min(num, values.shape[1])
    if num < values.shape[1]:
        places = np.argpartition(-values, num - 1, axis=1)[:, :num]
        places.sort(axis=1)  # of equal values the first comes first
    else:
        places = np.broadcast_to(np.arange(num), values.shape)
    order = np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)


# ------------------------------------------------------------------ changes of the scores

_Change = Callable[[Ids, Array], Array]


def with_start(settings: GenerationSettings, ids: Sequence[list[int]]) -> Ids:
    """Put the start token before rows of T ids each: (R, 1 + T)."""
    return np.array([[settings.start, *row] for row in ids])


def changes(settings: GenerationSettings) -> _Change | None:
    """Return what changes scores (R, V) by the tokens so far (R, 1 + T), or None."""
    penalty, size = np.float32(settings.repetition_penalty), settings.no_repeat_ngram_size
    if penalty == 1 and size == 0:
        return None

    def change(ids: Ids, scores: Array) -> Array:
        scores = scores.copy()
        if penalty != 1:
            seen = np.take_along_axis(scores, ids, 1)
            np.put_along_axis(scores, ids, np.where(seen < 0, seen * penalty, seen / penalty), 1)
        if size:
            for row, tokens in enumerate(ids.tolist()):
                scores[row, _repeating(tokens, size)] = -np.inf
        return scores

    return change


def _repeating(tokens: list[int], size: int) -> list[int]:
    """Return the tokens that would make an n-gram of `size` stand twice."""
    start = len(tokens) + 1 - size
    if start < 0:
        return []
    last = tokens[start:]
    return [
        tokens[at + size - 1]
        for at in range(len(tokens) - size + 1)
        if tokens[at : at + size - 1] == last
    ]
