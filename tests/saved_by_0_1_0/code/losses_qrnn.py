"""The loss of the generating models, and the decoder's inputs that go with it.

Shapes: B batch, T target length, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn


def shift_tokens_right(
    labels: torch.Tensor, pad_token_id: int, start_token_id: int
) -> torch.Tensor:
    """Decoder inputs (B, T) of `labels` (B, T): the start token, then all labels but the last."""
    shifted = labels.new_full(labels.shape, start_token_id)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == -100, pad_token_id)


def token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean negative log-likelihood per token in nats; labels of -100 do not count.

    Args:
        logits: (B, T, V).
        labels: (B, T), aligned with `logits`.
        num_items_in_batch: Divide the sum by this instead of by the tokens here, so that
            accumulated steps weigh every token alike.
        label_smoothing: Share of the target spread over the vocabulary, in [0, 1).
    """
    labels = labels.to(logits.device, torch.int64)
    total = nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=-100,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    if num_items_in_batch is None:
        return total / (labels != -100).sum().clamp(min=1)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
