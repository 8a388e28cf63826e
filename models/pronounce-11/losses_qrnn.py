"""The loss of the generating models, and the decoder's inputs that go with it.

Shapes: B batch, T target length, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast, Seq2SeqLMOutput

from .checks_qrnn import check_token_ids


def shift_tokens_right(
    labels: torch.Tensor, pad_token_id: int, start_token_id: int
) -> torch.Tensor:
    """Make decoder inputs (B, T) of `labels` (B, T): the start token, all labels but the last."""
    shifted = labels.new_full(labels.shape, start_token_id)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == -100, pad_token_id)


@dataclass
class QRNNSeq2SeqLMOutput(Seq2SeqLMOutput):
    """Output of the translation model.

    Attributes:
        unsmoothed_loss: The loss without its label smoothing; None where there is none in it.
    """

    unsmoothed_loss: torch.FloatTensor | None = None


@dataclass
class QRNNCausalLMOutput(CausalLMOutputWithPast):
    """Output of the language model.

    Attributes:
        unsmoothed_loss: As in `QRNNSeq2SeqLMOutput`.
    """

    unsmoothed_loss: torch.FloatTensor | None = None


class TokenLoss(NamedTuple):
    """A loss, and the same without label smoothing, None where there is none in it."""

    loss: torch.Tensor | None
    unsmoothed_loss: torch.Tensor | None = None


def token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    smoothing: float = 0.0,
) -> TokenLoss:
    """Mean negative log-likelihood per token in nats; labels of -100 do not count.

    Args:
        logits: (B, T, V).
        labels: (B, T), aligned with `logits`.
        num_items_in_batch: Divide the sum by this instead of by the tokens here, so that
            accumulated steps weigh every token alike.
        smoothing: Share of the target spread over the vocabulary, in [0, 1).

    Raises:
        ValueError: If the share is another.
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"`smoothing` must be in [0, 1), but is {smoothing}.")
    targets = labels.to(logits.device, torch.int64).flatten()
    rows = logits.float().flatten(0, 1)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != -100).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(rows.device)
    if smoothing == 0.0:
        nats = nn.functional.cross_entropy(rows, targets, ignore_index=-100, reduction="sum")
        return TokenLoss(nats / num_items_in_batch)
    # What `label_smoothing` of torch's cross_entropy computes, with both of its parts at hand.
    logs = rows.log_softmax(1)  # (B T, V)
    nats = nn.functional.nll_loss(logs, targets, ignore_index=-100, reduction="sum")
    spread = -logs.sum(1).masked_fill(targets == -100, 0.0).sum()
    total = nats * (1.0 - smoothing) + spread * (smoothing / logs.shape[1])
    return TokenLoss(total / num_items_in_batch, nats.detach() / num_items_in_batch)


def target_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None = None,
    smoothing: float = 0.0,
    *,
    name: str = "labels",
) -> TokenLoss:
    """Compute `token_loss` of labels (B, T) aligned with `logits` (B, T, V); of None without any.

    Raises:
        TypeError: If they are no integers.
        ValueError: If they are of another shape or no token ids.
    """
    if labels is None:
        return TokenLoss(None)
    check_token_ids(name, labels, logits.shape[2], tuple(logits.shape[:2]))
    return token_loss(logits, labels, num_items_in_batch, smoothing)


def next_token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None = None,
    smoothing: float = 0.0,
) -> TokenLoss:
    """Compute `token_loss` of a language model; of None without labels.

    Args:
        logits: (B, T, V).
        labels: (B, T), usually the input ids; shifted here.
        shift_labels: (B, T), aligned with `logits`. Where both are given they are what counts, as
            in every language model of transformers: `labels` cannot be shifted across a split.
        num_items_in_batch: As in `token_loss`.
        smoothing: As in `token_loss`.

    Raises:
        TypeError: If they are no integers.
        ValueError: If they are of another shape or no token ids.
    """
    if shift_labels is not None or labels is None:
        name = "shift_labels"
        return target_loss(logits, shift_labels, num_items_in_batch, smoothing, name=name)
    check_token_ids("labels", labels, logits.shape[2], tuple(logits.shape[:2]))
    return token_loss(logits[:, :-1], labels[:, 1:], num_items_in_batch, smoothing)


def share_of_batch(
    loss: torch.Tensor, num_items: int, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Scale the mean `loss` over `num_items` to its share of the mean over `num_items_in_batch`.

    Trainer leaves it to the model to make accumulated steps equal one big batch, and transformers'
    loss of numbers and of several labels does not.
    """
    if num_items_in_batch is None:
        return loss
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss * num_items / num_items_in_batch
