#!/usr/bin/env python
"""Compare ways to compute a layer's convolution with one matrix product over windows.

    python benchmarks/bench_convolution.py                        # what the choice rests on
    python benchmarks/bench_convolution.py --device cuda --dtypes bfloat16 float32
    python benchmarks/bench_convolution.py --sizes 8x128x96x2        # B x T x units x K

`convolution_qrnn.py` chooses between `windows` and `pairs`; the other ways are here to show why it
does not choose them. All take turns on the same inputs. Ways that cannot be differentiated are
measured forward only.

A ratio is the time of `windows` over that of the way: above 1, the way is faster.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from ending import end_process
from results import BOTH, FORWARD, Record, versus
from running import add_options, run
from torch import nn

from hf_qrnn.model import convolution_qrnn
from hf_qrnn.speed.paper_table import DTYPES, check_device
from hf_qrnn.speed.timing import Call, environment, interleave, using_threads

NUM_GATES = 3


class Size(NamedTuple):
    """Sizes of one layer: B rows, T steps, H channels and as many units, filter width K."""

    batch: int
    length: int
    hidden: int
    kernel_size: int


@dataclass(frozen=True)
class Operands:
    """Inputs (B, T + K - 1, H) and weight (G*H, K*H). No bias: in a layer, pooling adds it."""

    padded: torch.Tensor
    weight: torch.Tensor
    kernel_size: int

    @property
    def length(self) -> int:
        """The number of steps T."""
        return self.padded.shape[1] - self.kernel_size + 1

    @property
    def taps(self) -> torch.Tensor:
        """The weight by tap, (G*H, K, H)."""
        return self.weight.unflatten(1, (self.kernel_size, -1))


# ------------------------------------------------------------------ ways


def by_windows(x: Operands) -> torch.Tensor:
    """Convolve by one product over windows: the inputs of K steps side by side."""
    seen = convolution_qrnn.windows(x.padded, x.kernel_size)
    return nn.functional.linear(seen, x.weight)


def by_pairs(x: Operands) -> torch.Tensor:
    """Convolve two steps at a time by three products: F(2, 2)."""
    gates: torch.Tensor = convolution_qrnn.PairConvolution.apply(
        x.padded, x.weight, x.kernel_size, False
    )
    return gates


def by_taps(x: Operands) -> torch.Tensor:
    """Sum a product for each tap: no copy of the inputs, K passes over the outputs."""
    linear = nn.functional.linear
    gates = linear(x.padded[:, : x.length], x.taps[:, 0])
    for j in range(1, x.kernel_size):
        gates = gates + linear(x.padded[:, j : j + x.length], x.taps[:, j])
    return gates


def by_phases(x: Operands) -> torch.Tensor:
    """Convolve by K products over windows that do not overlap, so that none is copied."""
    batch, num_rows, width = x.padded.shape
    k = x.kernel_size
    # One long sequence; what a window sees of two rows is computed and left.
    rows = nn.functional.pad(x.padded, (0, 0, 0, -num_rows % k)).flatten(0, 1)
    gates = x.padded.new_empty(rows.shape[0] // k, k, x.weight.shape[0])
    for phase in range(k):
        num = (rows.shape[0] - phase) // k
        seen = rows[phase : phase + num * k].view(num, k * width)
        torch.mm(seen, x.weight.t(), out=gates[:num, phase])
    return gates.view(batch, -1, x.weight.shape[0])[:, : x.length]


def by_conv2d(x: Operands) -> torch.Tensor:
    """Convolve by oneDNN or cuDNN, on views whose channels are last."""
    image = x.padded.transpose(1, 2)[:, :, :, None]  # (B, H, T + K - 1, 1)
    kernel = x.taps.transpose(1, 2)[:, :, :, None]
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return nn.functional.conv2d(image, kernel)[:, :, :, 0].transpose(1, 2)


def by_onednn(x: Operands) -> torch.Tensor:
    """Convolve by oneDNN's inner product over windows, which torch does not make public."""
    seen = convolution_qrnn.windows(x.padded, x.kernel_size)
    gates: torch.Tensor = torch.ops.mkldnn._linear_pointwise(seen, x.weight, None, "none", [], "")
    return gates


Way = Callable[[Operands], torch.Tensor]
DIFFERENTIABLE: dict[str, Way] = {"pairs": by_pairs, "taps": by_taps, "conv2d": by_conv2d}
FORWARD_ONLY: dict[str, Way] = {"phases": by_phases, "onednn": by_onednn}


def ways(size: Size, device: str, backward: bool) -> dict[str, Way]:
    """List the ways that can be measured there, by name, `windows` first."""
    found = {"windows": by_windows, **DIFFERENTIABLE, **({} if backward else FORWARD_ONLY)}
    lost = set()
    if size.kernel_size % 2:
        lost.add("pairs")
    if torch.device(device).type != "cpu" or not torch.backends.mkldnn.is_available():
        lost.add("onednn")
    return {name: way for name, way in found.items() if name not in lost}


# ------------------------------------------------------------------ measuring


def make_operands(size: Size, dtype: str, device: str, requires_grad: bool) -> Operands:
    """Draw random inputs, and weights that keep their variance."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
        tensor = std * torch.randn(shape, generator=generator)
        return tensor.to(device, DTYPES[dtype]).requires_grad_(requires_grad)

    width = size.kernel_size * size.hidden
    outputs = NUM_GATES * size.hidden
    padded = normal(size.batch, size.length + size.kernel_size - 1, size.hidden)
    weight = normal(outputs, width, std=width**-0.5)
    return Operands(padded, weight, size.kernel_size)


def check_values(way: Way, x: Operands) -> None:
    """Raise an `AssertionError` where `way` is wrong: no time of it would mean anything."""
    exact = Operands(x.padded.double(), x.weight.double(), x.kernel_size)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}.get(x.padded.dtype, 0.1)
    with torch.no_grad():
        got, wanted = way(x).double(), by_windows(exact)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def make_call(way: Way, x: Operands, backward: bool) -> Call:
    """Make a call that runs forward without a graph, or also computes all gradients."""
    if not backward:

        def forward() -> object:
            with torch.no_grad():
                return way(x)

        return forward
    with torch.no_grad():
        cotangent = torch.randn_like(way(x))
    return lambda: torch.autograd.grad(way(x), [x.padded, x.weight], cotangent)


def bench_size(
    size: Size, dtype: str, device: str, backward: bool, seconds: float
) -> Iterator[Record]:
    """Measure every way in turns with `windows`; a record for each way but that."""
    x = make_operands(size, dtype, device, backward)
    calls = {}
    for name, way in ways(size, device, backward).items():
        check_values(way, x)
        calls[name] = make_call(way, x, backward)
    found = interleave(calls, device=device, seconds=seconds)
    for name in [name for name in calls if name != "windows"]:
        yield {
            "bench": "convolution",
            "way": name,
            "device": torch.device(device).type,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "mode": BOTH if backward else FORWARD,
            **size._asdict(),
            **versus(found[name], found["windows"]),
        }


# Of the goals' grid; few steps; the demo's and other widths; the paper's first filter.
SIZES = (
    *(Size(batch, length, 320, 2) for batch in (1, 8, 128) for length in (32, 128, 512)),
    *(Size(8, 128, hidden, 2) for hidden in (32, 64, 96, 128, 256, 640, 1024)),
    *(Size(1, 256, hidden, 2) for hidden in (64, 128, 256, 640)),
    *(Size(16, 103, 320, kernel_size) for kernel_size in (3, 4, 6)),
)


def measure(options: argparse.Namespace) -> Iterator[Record]:
    """Measure all sizes in all dtypes with all numbers of threads."""
    device, on_gpu = options.device, torch.device(options.device).type == "cuda"
    yield {"bench": "environment", **environment(device), "command": sys.argv[1:]}
    for dtype in options.dtypes or (["bfloat16"] if on_gpu else ["float32"]):
        check_device(device, dtype)
        for threads in [None] if on_gpu else options.threads:
            with using_threads(threads):
                for backward in (False, True):
                    for size in options.sizes or SIZES:
                        yield from bench_size(size, dtype, device, backward, options.seconds)


def _size(text: str) -> Size:
    batch, length, hidden, kernel_size = map(int, text.split("x"))
    return Size(batch, length, hidden, kernel_size)


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "bench_convolution", threads=[1])
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        metavar="BxTxHxK",
        help="sizes: rows x steps x units x filter width",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = make_parser()
    return run(parser, parser.parse_args(argv), measure)


if __name__ == "__main__":
    end_process(main)
