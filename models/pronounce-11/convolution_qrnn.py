"""The convolution of all gates over time (Eq. 1 of arXiv 1611.01576).

One matrix over the window of K inputs computes all gates of a step. On a CPU filters of even width
go by pairs of steps, which takes a quarter fewer multiplications (paired_convolution_qrnn.py).

Shapes: B batch, T time, E input channels, H units, K filter width, G gates.
"""

from __future__ import annotations

import torch
from torch import nn

from .padding_qrnn import windows
from .paired_convolution_qrnn import PairConvolution, goes_by_pairs
from .products_qrnn import apply_linear, is_open, linear, prefers_onednn

# With fewer steps a row, a decoder's one above all, a bias of every row is as large as the gates.
LEAST_STEPS = 8


def gate_convolution(
    input_size: int, hidden_size: int, kernel_size: int, num_gates: int
) -> nn.Linear:
    """Convolve for all gates by one matrix over the window: (B, T, K*E) to (B, T, G*H).

    Taps from first to last in processing order, gates in order z, f, o, i. No class of its own:
    quantisers ask for `type(module) is nn.Linear` and would pass by any other.
    """
    convolution = nn.Linear(kernel_size * input_size, num_gates * hidden_size)
    # For those who initialise it: the rows of its bias that open the forget gate, from and to.
    # Numbers, not a slice, which `torch.load` would not take out of a saved module.
    convolution.forget_rows = (hidden_size, 2 * hidden_size)  # type: ignore[assignment]
    return convolution


def convolve(
    convolution: nn.Module, padded: torch.Tensor, kernel_size: int, *, reverse: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute pre-activations of all gates, and the bias still to be added to them, if any.

    Args:
        convolution: A `gate_convolution` over windows of `padded`, or what took its place (an
            adapter, a quantised layer).
        padded: (B, T + K - 1, E), the inputs with the zeros or the past that the edges need.
        kernel_size: K.
        reverse: Whether processing goes from the last timestep to the first.

    Returns:
        (B, T, G*H), contiguous in its last dimension, and a bias (G*H) or None. Pooling adds it for
        less than a pass over all gates, and sums its gradient for less than another.
    """
    # First of all: to a compiler a size is not a number to compare.
    few = not torch.compiler.is_compiling() and padded.shape[1] - kernel_size + 1 < LEAST_STEPS
    if few or not is_open(convolution, padded):
        return apply_linear(convolution, windows(padded, kernel_size, reverse=reverse)), None
    assert isinstance(convolution, nn.Linear)
    weight, bias = convolution.weight, convolution.bias
    # Where oneDNN multiplies, the additions of the pairs take what they save.
    if not prefers_onednn() and goes_by_pairs(padded, weight, kernel_size):
        gates = PairConvolution.apply(padded, weight, kernel_size, reverse)
    else:
        gates = linear(windows(padded, kernel_size, reverse=reverse), weight)
    return gates, None if bias is None else bias.to(gates.dtype)
