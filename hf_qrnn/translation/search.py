"""The search from source to target ids: batches, length limits, scores around `generate()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteriaList

from hf_qrnn.data.translations import Hypothesis
from hf_qrnn.engine.settings import check_count
from hf_qrnn.model.limits_qrnn import RowLimits, end_ids, target_lengths, target_limits


@torch.no_grad()
def generate_hypotheses(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    num_beams: int = 1,
    num_return_sequences: int = 1,
    max_new_tokens: int | None = None,
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
        max_new_tokens: The most tokens of a target, its end token included; None = what
            `limits_qrnn.target_limits` says.
        batch_size: Sources a batch.
        on_batch: Called with the number of sources after every batch.

    Returns:
        For every source its `num_return_sequences` hypotheses.

    Raises:
        ValueError: If a number is out of range or the model computes NaN.
    """
    check_count("num_beams", num_beams)
    check_count("batch_size", batch_size)
    check_count("num_return_sequences", num_return_sequences)
    check_count("max_new_tokens", max_new_tokens, or_none=True)
    if not 1 <= num_return_sequences <= num_beams:
        raise ValueError(
            f"`num_return_sequences` must be in [1, `num_beams`] = [1, {num_beams}], "
            f"but is {num_return_sequences}."
        )
    # Neighbours in length share a batch: the fewest pads, and rows that end at about one time.
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    results: list[list[Hypothesis]] = [[] for _ in sources]
    # Validation in the midst of training comes here: the mode is given back.
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        rows = [sources[index] for index in indices]
        found = _generate_batch(model, rows, num_beams, num_return_sequences, max_new_tokens)
        for index, hypotheses in zip(indices, found, strict=True):
            results[index] = hypotheses
        if on_batch is not None:
            on_batch(len(indices))
    model.train(was_training)
    return results


def _generate_batch(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    num_beams: int,
    num_return: int,
    max_new_tokens: int | None,
) -> list[list[Hypothesis]]:
    width = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        attention_mask[index, : len(row)] = 1
    limits = target_limits(model.generation_config, attention_mask.sum(1))  # (B,)
    if max_new_tokens is not None:
        limits.fill_(max_new_tokens)
    limits = limits.to(model.device)
    output = model.generate(  # type: ignore[operator]
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        num_beams=num_beams,
        num_return_sequences=num_return,
        do_sample=False,
        # Else transformers tells of a default `max_length` that `max_new_tokens` overrules.
        max_length=None,
        # The batch goes on until its longest row is done; `RowLimits` ends the others before.
        max_new_tokens=int(limits.max()),
        stopping_criteria=StoppingCriteriaList([RowLimits(limits)]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    # Without the start token.
    generated = output.sequences[:, 1:]
    ends = end_ids(model.generation_config)
    lengths, is_cut = target_lengths(generated, limits, ends)
    scores, totals = _scores(model, output, lengths, num_beams)
    # No comparison with NaN is true: what a search found is chance.
    if any(math.isnan(score) for score in scores):
        raise ValueError(
            "`model` must give numbers, but gives NaN: its weights are damaged, or too large for "
            f"{model.dtype}."
        )
    flat = []
    for row, length, score, cut, total in zip(
        generated.tolist(), lengths.tolist(), scores, is_cut.tolist(), totals, strict=True
    ):
        ids = [token for token in row[:length] if token not in ends]
        flat.append(Hypothesis(ids, float(score), cut, float(total)))
    return [flat[start : start + num_return] for start in range(0, len(flat), num_return)]


def _scores(
    model: PreTrainedModel, output: Any, lengths: torch.Tensor, num_beams: int
) -> tuple[list[float], list[float]]:
    """Return each hypothesis' score, and its log-probability: a sum over `lengths` tokens."""
    if num_beams > 1:
        found = output.sequences_scores
        penalty = model.generation_config.length_penalty
        powers = lengths.double() ** (1.0 if penalty is None else penalty)
        return found.tolist(), (found * powers).tolist()
    chosen = model.compute_transition_scores(  # type: ignore[operator]
        output.sequences, output.scores, normalize_logits=True
    )  # (B, T)
    # Behind its end a row holds fill, whose scores are not its own.
    steps = torch.arange(chosen.shape[1], device=chosen.device)
    scores = chosen.masked_fill(steps >= lengths[:, None], 0.0).sum(1).tolist()
    return scores, scores
