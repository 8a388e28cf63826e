"""Pads: which steps are real, and how windows and states pass over the others.

Padding never changes a result (docs/design.md): inputs are zero at a pad before every convolution,
states are carried, outputs are zero.

Shapes: B batch, T time, E channels, H units, K filter width.
"""

from __future__ import annotations

import torch

from .checks_qrnn import check_mask, may_look, may_read, may_wait
from .internals_qrnn import assert_later, is_transformed


def hide_pads(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Zero `x` (B, T, E) where `mask` (B, T) is false."""
    return x if mask is None else x.masked_fill(~mask[:, :, None], 0.0)


def last_inputs(padded: torch.Tensor, mask: torch.Tensor | None, num: int) -> torch.Tensor:
    """Return the last `num` real rows of `padded` (B, num + T, E), whose first `num` came before.

    A right-padded row ends at its last real step, so that it goes on as if it had no pads.
    """
    length = padded.shape[1] - num
    if mask is None or length == 0 or num == 0:
        return padded[:, length:]
    times = torch.arange(1, length + 1, device=mask.device)
    end = (mask * times).amax(dim=1)  # (B,): 1 + index of the last real step, 0 without one
    rows = end[:, None] + torch.arange(num, device=mask.device)  # (B, num)
    return padded.gather(1, rows[:, :, None].expand(-1, -1, padded.shape[2]))


def last_step(h: torch.Tensor, mask: torch.Tensor | None, *, reverse: bool = False) -> torch.Tensor:
    """Return `h` (B, T, H) at the last real step in processing order, (B, H); zeros without one."""
    if h.shape[1] == 0:
        return h.new_zeros(h.shape[0], h.shape[2])
    if mask is None:
        return h[:, 0] if reverse else h[:, -1]
    length = mask.shape[1]
    times = torch.arange(length, device=mask.device)
    # At a row without a real step any index does: h is zero there.
    index = ((mask * (length - times)) if reverse else (mask * (times + 1))).argmax(dim=1)
    return h.gather(1, index[:, None, None].expand(-1, 1, h.shape[2]))[:, 0]


def mean_of_steps(h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over real steps of `h` (B, T, H), zero at pads: (B, H); zeros without one."""
    if mask is None:
        return h.sum(1) / max(1, h.shape[1])
    return h.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def max_of_steps(h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the largest of `h` (B, T, H) over real steps, (B, H); zeros without one."""
    if h.shape[1] == 0:
        return h.new_zeros(h.shape[0], h.shape[2])
    if mask is None:
        return h.amax(1)
    largest = h.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
    return largest.masked_fill(~mask.any(1, keepdim=True), 0.0)


def pad_time(x: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """Put zeros before and behind the steps of `x` (B, T, E): (B, left + T + right, E)."""
    batch, _, width = x.shape
    # One pass; functional.pad writes zeros everywhere first.
    parts = [x.new_zeros(batch, left, width)] if left > 0 else []
    parts.append(x)
    if right > 0:
        parts.append(x.new_zeros(batch, right, width))
    return torch.cat(parts, dim=1) if len(parts) > 1 else x


def windows(padded: torch.Tensor, kernel_size: int, *, reverse: bool = False) -> torch.Tensor:
    """Return the K inputs that each output of a convolution sees, in processing order.

    Args:
        padded: (B, T + K - 1, E).
        kernel_size: K.
        reverse: Whether processing goes from the last timestep to the first.

    Returns:
        (B, T, K*E).
    """
    if kernel_size == 1:
        return padded
    length = padded.shape[1] - kernel_size + 1
    taps = [padded[:, j : j + length] for j in range(kernel_size)]
    return torch.cat(taps[::-1] if reverse else taps, dim=-1)  # (B, T, K*E)


def real_steps(
    attention_mask: torch.Tensor | None,
    length: int,
    batch: int | None = None,
    *,
    exact: bool = False,
    name: str = "attention_mask",
) -> torch.Tensor | None:
    """Return a mask (B, `length`) of the last `length` columns, None where nothing is a pad.

    Raises:
        ValueError: If the mask is not (B, at least `length`), with `exact` not (B, `length`), or
            a row has a hole in it.
    """
    if attention_mask is None:
        return None
    check_mask(name, attention_mask, length, batch, exact=exact)
    if not exact:
        attention_mask = attention_mask[:, attention_mask.shape[1] - length :]
    mask = attention_mask.bool()
    if not may_look(mask) or mask.device.type == "meta" or is_transformed():
        return mask
    if may_read(mask) and bool(mask.all()):
        return None
    capturing = mask.is_cuda and torch.cuda.is_current_stream_capturing()
    if length > 1 and not capturing:
        starts = mask[:, :1].long().sum(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
        rule = f"`{name}` must be one run of ones in every row, but"
        if not may_wait(mask):
            assert_later((starts <= 1).all(), f"{rule} one has a hole.")
        elif bool((starts > 1).any()):
            row = int((starts > 1).nonzero()[0])
            raise ValueError(f"{rule} row {row} has a hole.")
    return mask
