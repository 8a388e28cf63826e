"""The convolution of Eq. 1 (arXiv 1611.01576), two steps by three products.

A step of a filter of even width K takes K E x G H multiplications as a product with its window. Two
steps at a time take a quarter less, by the minimal filtering algorithm F(2, 2) (Winograd,
Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv 1509.09308, section 4.1):

    y_0 = x_0 w_0 + x_1 w_1 = (x_0 - x_1) w_0 + x_1 (w_0 + w_1)
    y_1 = x_1 w_0 + x_2 w_1 = x_1 (w_0 + w_1) + (x_2 - x_1) w_1

Three products in place of four, forward and, since the gradients have the same form, backward. A
wider filter is a sum of K / 2 such pairs of taps. The difference of infinities is no number, so
inputs that hold one go by the one product, and gates saturate; infinite weights or gradients give
NaN by pairs where one product may give infinity.

Shapes: B batch, T time, E input channels, H units, K filter width, G gates.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .padding_qrnn import pad_time, windows

# With fewer pairs of steps, input channels or outputs than these, the additions and the smaller
# products cost more than is saved (benchmarks/results/bench_convolution_cpu.jsonl).
LEAST_PAIRS, LEAST_INPUTS, LEAST_OUTPUTS = 256, 128, 256


def goes_by_pairs(padded: torch.Tensor, weight: torch.Tensor, kernel_size: int) -> bool:
    """Tell whether three products of half the rows are faster here than one, and as exact.

    In fewer digits than float32 sums of inputs and of taps would be rounded before they are
    multiplied. The sum over all inputs, whose time is a hundredth of the products' at most, tells
    whether one of them is infinite.
    """
    num_pairs = padded.shape[0] * ((padded.shape[1] - kernel_size + 1) // 2)
    return (
        kernel_size % 2 == 0
        and num_pairs >= LEAST_PAIRS
        and padded.shape[2] >= LEAST_INPUTS
        and weight.shape[0] >= LEAST_OUTPUTS
        and padded.dtype == weight.dtype
        and padded.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and math.isfinite(padded.detach().sum().item())
    )


def _factors(
    padded: torch.Tensor, kernel_size: int, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute x_0 - x_1, x_1 and x_2 - x_1 of all pairs of steps and of taps: (B*N, K/2*E) each.

    N pairs hold T steps; of an odd T the last pair's second step is none, and its x_2 - x_1 zero.
    """
    even, odd = padded[:, 0::2], padded[:, 1::2]
    num = odd.shape[1]
    if even.shape[1] == num:  # an odd T
        after = odd.new_empty(odd.shape)
        torch.sub(even[:, 1:], odd[:, :-1], out=after[:, :-1])
        after[:, -1] = 0.0
    else:
        after = even[:, 1:] - odd
    parts = (even[:, :num] - odd, odd, after)
    # A window over K inputs is one of K/2 over pairs of inputs.
    return tuple(  # type: ignore[return-value]
        windows(part, kernel_size // 2, reverse=reverse).flatten(0, 1) for part in parts
    )


def _taps(
    weight: torch.Tensor, kernel_size: int, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the taps w_0 and w_1 of all pairs: (G*H, K/2, E), views of `weight` (G*H, K*E)."""
    taps = weight.unflatten(1, (kernel_size // 2, 2, -1))
    first, second = taps.unbind(2)
    return (second, first) if reverse else (first, second)


class PairConvolution(torch.autograd.Function):
    """F(2, 2): `padded` (B, T + K - 1, E) by `weight` (G*H, K*E) to (B, T, G*H); no bias."""

    @staticmethod
    def forward(
        ctx: Any,
        padded: torch.Tensor,
        weight: torch.Tensor,
        kernel_size: int,
        reverse: bool,
    ) -> torch.Tensor:
        """Compute the products; less is kept for backward than the windows."""
        batch, length = padded.shape[0], padded.shape[1] - kernel_size + 1
        before, middle, after = _factors(padded, kernel_size, reverse)
        first, second = _taps(weight, kernel_size, reverse)
        total = (first + second).flatten(1)
        pairs = padded.new_empty(before.shape[0], 2, weight.shape[0])
        y_0, y_1 = pairs.unbind(1)
        # x_1 (w_0 + w_1) is part of both; each product is then added where it lies.
        torch.mm(middle, total.t(), out=y_0)
        y_1.copy_(y_0)
        y_0.addmm_(before, first.flatten(1).t())
        y_1.addmm_(after, second.flatten(1).t())
        ctx.save_for_backward(padded, weight, total)
        ctx.kernel_size, ctx.reverse = kernel_size, reverse
        return pairs.view(batch, -1, weight.shape[0])[:, :length]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of `padded` and `weight`, by three products each."""
        (grad,) = grads
        padded, weight, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradients will be differentiated again
            return (*_plain_backward(ctx, padded, weight, grad), None, None)
        if grad.shape[1] % 2:  # the second step of the last pair is none
            grad = pad_time(grad, 0, 1)
        pairs = grad.reshape(-1, 2, grad.shape[2])
        g_0, g_1 = pairs.unbind(1)
        both = g_0 + g_1
        of_padded = of_weight = None
        if ctx.needs_input_grad[0]:
            of_padded = _grad_padded(ctx, padded, weight, total, (g_0, both, g_1))
        if ctx.needs_input_grad[1]:
            of_weight = _grad_weight(ctx, padded, weight, (g_0, both, g_1))
        return of_padded, of_weight, None, None


def _grad_padded(
    ctx: Any,
    padded: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    grads: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """Compute the gradient of `padded` from those of y_0, y_0 + y_1 and y_1, each (B*N, G*H)."""
    batch, kernel_size = padded.shape[0], ctx.kernel_size
    first, second = _taps(weight, kernel_size, ctx.reverse)
    matrices = (first.flatten(1), total, second.flatten(1))
    before, middle, after = (
        _sum_windows((grad @ matrix).unflatten(0, (batch, -1)), kernel_size // 2, ctx.reverse)
        for grad, matrix in zip(grads, matrices, strict=True)
    )  # (B, N + K/2 - 1, E) each
    num = before.shape[1]
    # x_0 and x_2 are even inputs, x_1 odd ones; x_2 of a pair is x_0 of the next.
    result = padded.new_empty(batch, 2 * num + 1, padded.shape[2])
    even, odd = result[:, 0::2], result[:, 1::2]
    torch.sub(middle, before, out=odd)
    odd -= after
    even[:, 0] = before[:, 0]
    torch.add(before[:, 1:], after[:, :-1], out=even[:, 1:-1])
    even[:, -1] = after[:, -1]
    return result[:, : padded.shape[1]]


def _sum_windows(grad: torch.Tensor, kernel_size: int, reverse: bool) -> torch.Tensor:
    """Compute the gradient (B, N + K - 1, E) of the input that `windows` made into (B, N, K*E)."""
    if kernel_size == 1:  # a window is its one input
        return grad
    batch, length, width = grad.shape
    result = grad.new_zeros(batch, length + kernel_size - 1, width // kernel_size)
    taps = grad.chunk(kernel_size, dim=-1)
    for j, tap in enumerate(taps[::-1] if reverse else taps):
        result[:, j : j + length] += tap
    return result


def _grad_weight(
    ctx: Any, padded: torch.Tensor, weight: torch.Tensor, grads: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Compute the gradient of `weight` from those of y_0, y_0 + y_1 and y_1, each (B*N, G*H)."""
    factors = _factors(padded, ctx.kernel_size, ctx.reverse)
    result = torch.empty_like(weight, memory_format=torch.contiguous_format)
    of_first, of_second = _taps(result, ctx.kernel_size, ctx.reverse)
    before, middle, after = (
        (grad.t() @ factor).view(of_first.shape)
        for grad, factor in zip(grads, factors, strict=True)
    )
    torch.add(before, middle, out=of_first)
    torch.add(middle, after, out=of_second)
    return result


def _plain_backward(
    ctx: Any, padded: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same gradients by one product, so that they can be differentiated again."""
    seen = windows(padded, ctx.kernel_size, reverse=ctx.reverse)
    of_windows = _sum_windows(grad @ weight, ctx.kernel_size, ctx.reverse)
    of_weight = grad.flatten(0, 1).t() @ seen.flatten(0, 1)
    return of_windows, of_weight
