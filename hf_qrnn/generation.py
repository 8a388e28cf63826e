"""From source ids to target ids: batches, length limits and scores around `generate()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList


@dataclass(frozen=True)
class Hypothesis:
    """One generated target.

    Attributes:
        ids: Target ids with neither the start nor the end token.
        score: Log-probability in nats, end token included: the sum for greedy search, the sum
            over the length for beam search (transformers' `length_penalty`).
    """

    ids: list[int]
    score: float


def target_limit(num_source_tokens: int) -> int:
    """The most tokens a translation may have: a runaway loop must end."""
    return 2 * num_source_tokens + 50


class _RowLimits(StoppingCriteria):
    """Ends each row at its own limit, so that a row's result does not depend on its neighbours."""

    def __init__(self, limits: torch.Tensor) -> None:
        self.limits = limits

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        limits = self.limits.repeat_interleave(input_ids.shape[0] // self.limits.shape[0])
        return limits <= input_ids.shape[1] - 1  # the start token does not count


@torch.no_grad()
def generate_hypotheses(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    num_beams: int = 1,
    num_return_sequences: int = 1,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """Generate the best targets of many sources, in the order given.

    Sources are batched by length; a row's result does not depend on the batch it is in.

    Args:
        model: A sequence-to-sequence model.
        sources: Source ids, each with its end token.
        num_beams: Beams; 1 is greedy search.
        num_return_sequences: Hypotheses a source, best first; at most `num_beams`.
        batch_size: Sources a batch.
        on_batch: Called with the number of sources after every batch.

    Returns:
        For every source its `num_return_sequences` hypotheses.

    Raises:
        ValueError: If a number is out of range or the model computes NaN.
    """
    for name, value in (("num_beams", num_beams), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {value}.")
    if not 1 <= num_return_sequences <= num_beams:
        raise ValueError(
            f"`num_return_sequences` must be in [1, `num_beams`] = [1, {num_beams}], "
            f"but is {num_return_sequences}."
        )
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    results: list[list[Hypothesis]] = [[] for _ in sources]
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        rows = [sources[index] for index in indices]
        for index, hypotheses in zip(
            indices, _generate_batch(model, rows, num_beams, num_return_sequences), strict=True
        ):
            results[index] = hypotheses
        if on_batch is not None:
            on_batch(len(indices))
    model.train(was_training)
    return results


def _generate_batch(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], num_beams: int, num_return: int
) -> list[list[Hypothesis]]:
    width = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        attention_mask[index, : len(row)] = 1
    limits = torch.tensor([target_limit(len(row)) for row in rows], device=model.device)
    output = model.generate(  # type: ignore[operator]
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        num_beams=num_beams,
        num_return_sequences=num_return,
        do_sample=False,
        max_length=None,
        max_new_tokens=target_limit(width),
        stopping_criteria=StoppingCriteriaList([_RowLimits(limits)]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    generated = output.sequences[:, 1:]
    lengths = _lengths(generated, model, limits.repeat_interleave(num_return))
    if num_beams == 1:
        chosen = model.compute_transition_scores(  # type: ignore[operator]
            output.sequences, output.scores, normalize_logits=True
        )  # (B, T)
        steps = torch.arange(chosen.shape[1], device=chosen.device)
        scores = chosen.masked_fill(steps >= lengths[:, None], 0.0).sum(1).tolist()
    else:
        scores = output.sequences_scores.tolist()
    if any(math.isnan(score) for score in scores):
        raise ValueError(
            "`model` must give numbers, but gives NaN: its weights are damaged, or too large for "
            f"{model.dtype}."
        )
    ends = _end_ids(model)
    flat = []
    for row, length, score in zip(generated.tolist(), lengths.tolist(), scores, strict=True):
        ids = [token for token in row[:length] if token not in ends]
        flat.append(Hypothesis(ids, float(score)))
    return [flat[start : start + num_return] for start in range(0, len(flat), num_return)]


def _end_ids(model: PreTrainedModel) -> list[int]:
    ends = model.generation_config.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [int(ends)]


def _lengths(generated: torch.Tensor, model: PreTrainedModel, limits: torch.Tensor) -> torch.Tensor:
    """Tokens of each row (B, T) up to its first end token, that included, or to its limit: (B,)."""
    ended = torch.zeros_like(generated, dtype=torch.bool)
    for token in _end_ids(model):
        ended |= generated == token
    before = (ended.long().cumsum(1) == 0).sum(1)
    return torch.minimum(before + ended.any(1).long(), limits)
