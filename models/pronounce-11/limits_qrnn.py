"""The limit of a target's length: one rule for the translator, the pipeline and generate().

The rule is saved with the model, in generation_config.json: `max_length_ratio` tokens for each
token of the source and `max_length_offset` more, end tokens included on both sides. Training writes
them, from its data; a model without them has 2 and 50.

Shapes: B batch, N sequences of each source, T target length.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

DEFAULT_MAX_LENGTH = 512
"""The `max_length` of generate() where nothing else is said."""
DEFAULT_RATIO, DEFAULT_OFFSET = 2.0, 50
"""The rule of a model that has none."""
# No limit that somebody chose: 20 is transformers' own default.
_NOT_CHOSEN = (None, 20, DEFAULT_MAX_LENGTH)


def length_rule(generation_config: GenerationConfig) -> tuple[float, int] | None:
    """Return `max_length_ratio` and `max_length_offset` of a model, or None where it has none.

    Raises:
        ValueError: If they are no numbers.
    """
    values: list[Any] = [
        getattr(generation_config, f"max_length_{name}", None) for name in ("ratio", "offset")
    ]
    if values == [None, None]:
        return None
    if not all(type(value) in (int, float) and 0 <= value < math.inf for value in values):
        raise ValueError(
            "`max_length_ratio` and `max_length_offset` of a generation config must be numbers of "
            f"at least 0, but are {values[0]!r} and {values[1]!r}."
        )
    return float(values[0]), int(values[1])


def set_length_rule(generation_config: GenerationConfig, ratio: float, offset: int) -> None:
    """Keep a rule in `generation_config`, to be saved with the model."""
    generation_config.max_length_ratio = ratio  # type: ignore[attr-defined]
    generation_config.max_length_offset = offset  # type: ignore[attr-defined]
    # A generation config that calls itself derived from the model's config loses, when it is
    # loaded, what transformers does not know.
    generation_config._from_model_config = False


def chosen_limit(generation_config: GenerationConfig) -> int | None:
    """Return the most tokens of a target that somebody chose, the start token not counted.

    None where nobody did, and the rule holds.
    """
    if generation_config.max_new_tokens is not None:
        return int(generation_config.max_new_tokens)
    if generation_config.max_length not in _NOT_CHOSEN:
        return max(1, int(generation_config.max_length) - 1)
    return None


def target_limits(
    generation_config: GenerationConfig, source_lengths: torch.Tensor
) -> torch.Tensor:
    """Compute the most tokens of each target, the end token included and the start token not.

    A length that somebody chose (`max_new_tokens`, or a `max_length` that is no default) goes
    before the rule.

    Args:
        generation_config: The model's.
        source_lengths: (B,) tokens of each source, the end token included.

    Returns:
        (B,) int64, at least 1.
    """
    chosen = chosen_limit(generation_config)
    if chosen is not None:
        return torch.full_like(source_lengths, chosen)
    ratio, offset = length_rule(generation_config) or (DEFAULT_RATIO, DEFAULT_OFFSET)
    return (source_lengths.double() * ratio).ceil().long().add(offset).clamp(min=1)


class RowLimits(StoppingCriteria):
    """Limits of the rows: each ends at its own, so that no result depends on a row's neighbours.

    Args:
        limits: (B,) tokens.
    """

    def __init__(self, limits: torch.Tensor) -> None:
        self.limits = limits

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Tell for each row whether it is done: (B * N,)."""
        limits = self.limits.repeat_interleave(input_ids.shape[0] // self.limits.shape[0])
        return limits <= input_ids.shape[1] - 1  # the start token does not count


def end_ids(generation_config: GenerationConfig) -> list[int]:
    """Return the ids that end a target."""
    ends = generation_config.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [int(ends)]


def target_lengths(
    generated: torch.Tensor, limits: torch.Tensor, ends: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the tokens of each row up to and with its first end token, or to its limit.

    Args:
        generated: (B * N, T) ids without the start token.
        limits: (B,) tokens.
        ends: Ids that end a target.

    Returns:
        Lengths (B * N,), and whether the limit came before an end token (B * N,).
    """
    limits = limits.repeat_interleave(generated.shape[0] // limits.shape[0])  # (B * N,)
    ended = torch.zeros_like(generated, dtype=torch.bool)
    for token in ends:
        ended |= generated == token
    # Tokens before the first end token; all T where there is none.
    before = (ended.long().cumsum(1) == 0).sum(1)
    whole = before + ended.any(1).long()
    return torch.minimum(whole, limits), before >= limits
