"""The convolution of all gates over time (Eq. 1 of arXiv 1611.01576).

One matrix over the window of K inputs computes all gates of a step. On a CPU filters of even width
go by pairs of steps, which takes a quarter fewer multiplications (paired_convolution_qrnn.py).

Shapes: B batch, T time, E input channels, H units, K filter width, G gates.
"""

from __future__ import annotations

import torch
from torch import nn

from .internals_qrnn import in_forward_mode, is_hooked, is_transformed, is_watched
from .padding_qrnn import windows
from .paired_convolution_qrnn import PairConvolution, goes_by_pairs

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
    if not _is_open(convolution, padded, kernel_size):
        return convolution(windows(padded, kernel_size, reverse=reverse)), None
    assert isinstance(convolution, nn.Linear)
    weight, bias = convolution.weight, convolution.bias
    if goes_by_pairs(padded, weight, kernel_size):
        gates = PairConvolution.apply(padded, weight, kernel_size, reverse)
    else:
        gates = nn.functional.linear(windows(padded, kernel_size, reverse=reverse), weight)
    return gates, None if bias is None else bias.to(gates.dtype)


def _is_open(convolution: nn.Module, padded: torch.Tensor, kernel_size: int) -> bool:
    """Tell whether its product may be computed without calling it, and is worth it: on a CPU.

    A GPU's product adds the bias for nothing. Whatever looks at operations, a compiler, a tracer, a
    transform of torch.func, forward-mode derivatives, a dispatch mode or a tensor of another type,
    sees one product.
    """
    return (
        # First of all: to a compiler a size is not a number to compare.
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        # Then what is asked fastest and ends it for a GPU and for a decoding step.
        and type(padded) is torch.Tensor
        and padded.device.type == "cpu"
        and padded.shape[1] - kernel_size + 1 >= LEAST_STEPS
        and not is_transformed()
        and not in_forward_mode()
        and not is_watched()
        # Else an adapter or a quantised layer took its place, or somebody listens.
        and type(convolution) is nn.Linear
        and type(convolution.weight) is nn.Parameter
        and "forward" not in convolution.__dict__
        and not is_hooked(convolution)
    )
