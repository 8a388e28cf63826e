"""Products of matrices on a CPU by the faster of torch's two libraries.

torch multiplies float32 matrices by MKL, whose code for processors of another maker than Intel uses
half of their arithmetic units (AVX2). oneDNN, which every torch for x86 carries too and gives
bfloat16 to, asks what the processor can: it is 1.7 to 2.3 times as fast there
(benchmarks/results/bench_products_cpu.jsonl). torch has an operation for it, without derivatives:
they are here, and are products themselves.

Shapes: K inner, N outer.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .internals_qrnn import is_untouched, onednn_linear, runs_eagerly

# With fewer rows, a decoding step's above all, the call itself is what takes time.
LEAST_ROWS = 8
LEAST_WORK = 2**21


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply `x` (..., K) by `weight` (N, K) and add `bias` (N): (..., N).

    Differentiable to any order. The caller knows by `is_open` that nobody looks at operations.
    """
    if not _is_faster_by_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _by_onednn(x, weight, bias)
    product: torch.Tensor = _Product.apply(x, weight, bias)
    return product


def apply_linear(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call `module`, a `nn.Linear` or what took its place, on `x` (..., K): (..., N)."""
    if not is_open(module, x):
        called: torch.Tensor = module(x)
        return called
    assert isinstance(module, nn.Linear)
    return linear(x, module.weight, module.bias)


def is_open(module: nn.Module, x: torch.Tensor) -> bool:
    """Tell whether the product of `module` with `x` may be computed without calling it, on a CPU.

    A GPU's product adds the bias for nothing.
    """
    # First of all: a compiler sees the module called.
    return runs_eagerly(x) and x.device.type == "cpu" and is_untouched(module, nn.Linear)


class _Product(torch.autograd.Function):
    """`x` (..., K) by `weight` (N, K), transposed, plus `bias` (N) or None."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute (..., N)."""
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients, which are products too."""
        (grad,) = grads
        x, weight = ctx.saved_tensors
        rows = _rows(grad)
        of_x = of_weight = of_bias = None
        # A backward pass may be watched where the forward pass was not.
        product = linear if runs_eagerly(grad) else nn.functional.linear
        if ctx.needs_input_grad[0]:
            of_x = product(grad, weight.t())
        if ctx.needs_input_grad[1]:
            of_weight = product(rows.t(), _rows(x).t())
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    function = onednn_linear()
    assert function is not None, "asked for where it is not there"
    rows = function(_dense(_rows(x)), _dense(weight), bias)
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return `x` (..., K), of at least one number, as a matrix.

    By `reshape`, which many gradients at once (`is_grads_batched`) have where they lack `flatten`.
    """
    return x.reshape(-1, x.shape[-1])


def _dense(matrix: torch.Tensor) -> torch.Tensor:
    """Return `matrix`, or a copy of it where rows or columns are apart in memory.

    Of such a matrix oneDNN makes no use but by its reference code, a thousand times as slow.
    """
    if matrix.is_contiguous() or matrix.t().is_contiguous():
        return matrix
    return matrix.contiguous()


def _is_faster_by_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Tell whether oneDNN multiplies these two faster than what torch would choose."""
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and x.numel() >= LEAST_ROWS * x.shape[-1] > 0
        and x.numel() * weight.shape[0] >= LEAST_WORK
        # As what torch chooses, the product would be in fewer digits.
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and prefers_onednn()
    )


@functools.cache
def prefers_onednn() -> bool:
    """Tell whether the processor is one for which MKL has its slow code, and oneDNN is there.

    A rule, not a measurement: a run that is resumed must choose as it did before.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        return False
    return _maker_of_processor() == "AuthenticAMD" and onednn_linear() is not None


def _maker_of_processor() -> str:
    """Return what CPUID calls the maker of the processor; "" where it is not to be known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    makers = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return makers[0] if makers else ""
