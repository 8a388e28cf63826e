"""Checks of the keywords that transformers hands to every model: those without effect pass.

Trainer, generate(), the pipelines, PEFT and data collators give `forward` more than it names. A
keyword of theirs is let through where it asks for what a recurrence does anyway, and refused where
it means something that is not done here; a keyword nobody knows is a misspelt one. None always
passes. Values are looked at, which costs a synchronisation with the device, but only where such a
keyword is given; where they cannot be looked at, as in a traced graph or a transform of
torch.func, it is refused.

Shapes: B batch, T length.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from .checks_qrnn import check_mask, may_look
from .internals_qrnn import is_transformed

# These pass with any value: they ask for nothing, or for outputs that a model need not have.
WITHOUT_EFFECT = {
    "num_items_in_batch",  # Trainer, for the loss; bases have none
    "max_length_q", "max_length_k",  # collators, beside `cu_seq_lens_q`
    "output_attentions",  # generate() and PEFT, of models without attention too
    "output_hidden_states",
    "use_cache",  # generate() and PEFT, of models without a state too
    "skip_logits",  # Trainer with use_liger_kernel: logits are computed all the same
}  # fmt: skip
# These pass with the one value that asks for nothing.
NEUTRAL = {"logits_to_keep": 0, "num_logits_to_keep": 0, "output_router_logits": False}
PACKING = "pad the rows instead"  # the cure for several texts in one row


def check_keywords(
    model: Any,
    keywords: dict[str, Any],
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    decoder_attention_mask: torch.Tensor | None = None,
) -> None:
    """Let `keywords`, those that `model.forward` does not name, through if they change nothing.

    Args:
        model: Whose forward it is; has a config.
        keywords: Names and values.
        attention_mask: (B, at least T), of the inputs.
        past_key_values: The state the call goes on from.
        decoder_attention_mask: (B, at least T), of the decoder's inputs where there are two.

    Raises:
        TypeError: If a keyword is not known.
        ValueError: If its value asks for what is not done.
    """
    for name, value in keywords.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name in NEUTRAL:
            if isinstance(value, torch.Tensor) or value != NEUTRAL[name]:
                raise ValueError(f"`{name}` must be {NEUTRAL[name]!r} here, but is {value!r}.")
        elif name == "cache_position":
            _check_cache_position(value, past_key_values)
        elif name == "position_ids":
            # Of an encoder-decoder the positions are the source's, which no cache goes on from.
            cache = None if model.config.is_encoder_decoder else past_key_values
            _check_positions(name, value, attention_mask, cache)
        elif name == "decoder_position_ids" and model.config.is_encoder_decoder:
            _check_positions(name, value, decoder_attention_mask, past_key_values)
        elif name in VALUES:
            _look(name, value)
            rule, holds = VALUES[name]
            if not holds(value):
                raise ValueError(f"`{name}` must {rule}.")
        else:
            raise TypeError(_unknown(model, name))


def _num_seen(past_key_values: Any) -> int:
    length = getattr(past_key_values, "get_seq_length", None)
    return 0 if length is None else int(length())


def _can_look(value: Any) -> bool:
    if not may_look(value) or value.device.type == "meta" or is_transformed():
        return False
    return not (value.is_cuda and torch.cuda.is_current_stream_capturing())


def _look(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor, but is a {type(value).__name__}.")
    if not _can_look(value):
        raise ValueError(
            f"`{name}` must be None in a traced graph and in a transform of torch.func, "
            "where nobody sees that it changes nothing."
        )


def _check_cache_position(positions: Any, past_key_values: Any) -> None:
    _look("cache_position", positions)
    seen = _num_seen(past_key_values)
    expected = torch.arange(seen, seen + positions.numel(), device=positions.device)
    if not torch.equal(positions.flatten().long(), expected):
        raise ValueError(
            f"`cache_position` must count on from the {seen} steps of `past_key_values`, but is "
            f"{positions.flatten().tolist()[:8]}."
        )


def _check_positions(
    name: str, positions: Any, mask: torch.Tensor | None, past_key_values: Any
) -> None:
    """Count positions (B, T) on from each real token to the next: one text a row."""
    _look(name, positions)
    if positions.dim() != 2:
        raise ValueError(f"`{name}` must be (batch, length), but is {tuple(positions.shape)}.")
    length = positions.shape[1]
    if mask is None:
        mask = torch.ones_like(positions)
    check_mask(name.replace("position_ids", "attention_mask"), mask, length)
    mask = mask.bool()
    if mask.shape[1] == length:  # what came before, if anything did, was real
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
    mask = mask[:, -length - 1 :]
    # A text can also begin where a chunk does: the state is that of another.
    first = (positions[:, :1] == 0) & (_num_seen(past_key_values) > 0)
    wrong = torch.cat([first, positions.diff(dim=1) != 1], 1) & mask[:, 1:] & mask[:, :-1]
    if bool(wrong.any()):
        row, column = (int(index) for index in wrong.nonzero()[0])
        raise ValueError(
            f"`{name}` must count on within a row, which is one text ({PACKING}), but row {row} "
            f"is at {int(positions[min(row, len(positions) - 1), column])} in column {column}."
        )


def _unknown(model: Any, name: str) -> str:
    sentence = (
        f"Keywords of {type(model).__name__}.forward must be known to it, but `{name}` is not"
    )
    known = list(inspect.signature(type(model).forward).parameters)[1:]
    near = difflib.get_close_matches(name, known, 1)
    return f"{sentence}; did you mean `{near[0]}`?" if near else f"{sentence}."


def _all_ones(value: torch.Tensor) -> bool:
    return bool((value == 1).all())


def _all_zeros(value: torch.Tensor) -> bool:
    return bool((value == 0).all())


def _one_text(value: torch.Tensor) -> bool:
    return value.numel() <= 2


def _one_number_a_row(value: torch.Tensor) -> bool:
    return bool((value == value[..., :1]).all())


# The rest of an error's sentence, and the test of a value, by keyword.
VALUES: dict[str, tuple[str, Callable[[torch.Tensor], bool]]] = {
    "cu_seq_lens_q": (f"have one text a row ({PACKING}), but has several", _one_text),
    "cu_seq_lens_k": (f"have one text a row ({PACKING}), but has several", _one_text),
    "seq_idx": (f"have one text a row ({PACKING}), but has several", _one_number_a_row),
    "token_type_ids": ("be 0, for there are no types of tokens, but holds others", _all_zeros),
    "head_mask": ("be 1, for no head can be left out, but holds others", _all_ones),
    "decoder_head_mask": ("be 1, for no head can be left out, but holds others", _all_ones),
    "cross_attn_head_mask": ("be 1, for no head can be left out, but holds others", _all_ones),
}
