"""The paper's comparison on this machine: a QRNN layer beside `nn.LSTM` (Fig. 4 of 1611.01576).

Shapes: B batch, T time, H units. A cell is one batch size and one length.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from hf_qrnn.layer import QRNN

from .timing import Call, Timing, captured, interleave, times_as_fast, using_threads

# Fig. 4, right: how many times as fast as cuDNN's LSTM one layer of 320 units with k = 2 is,
# forward, on a K40; by batch, for the lengths below.
PAPER_LENGTHS = (32, 64, 128, 256, 512)
PAPER_SPEEDUPS = {
    8: (5.5, 8.8, 11.0, 12.4, 16.9),
    16: (5.5, 6.7, 7.8, 8.3, 10.8),
    32: (4.2, 4.5, 4.9, 4.9, 6.4),
    64: (3.0, 3.0, 3.0, 3.0, 3.7),
    128: (2.1, 1.9, 2.0, 2.0, 2.4),
    256: (1.4, 1.4, 1.3, 1.3, 1.3),
}
PAPER_CELLS = tuple((batch, length) for batch in PAPER_SPEEDUPS for length in PAPER_LENGTHS)
# Corners and middle of the table's upper half: what takes seconds.
QUICK_CELLS = tuple((batch, length) for batch in (8, 32) for length in (32, 128, 512))
HIDDEN_SIZE = 320

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def paper_speedup(batch: int, length: int) -> float | None:
    """Return the paper's figure for a cell, None outside of its table."""
    if batch not in PAPER_SPEEDUPS or length not in PAPER_LENGTHS:
        return None
    return PAPER_SPEEDUPS[batch][PAPER_LENGTHS.index(length)]


@dataclass(frozen=True)
class Cell:
    """One comparison: its sizes, and how it is made."""

    batch: int
    length: int
    dtype: str = "float32"
    device: str = "cpu"
    backward: bool = False
    hidden_size: int = HIDDEN_SIZE
    kernel_size: int = 2


def layer_call(
    layer: nn.Module, shape: tuple[int, int, int], dtype: str, device: str, backward: bool
) -> Call:
    """Make a call of `layer` on random input of `shape`; with `backward` also all gradients.

    Forward alone is inference: evaluation mode without a graph.
    """
    layer = layer.to(device, DTYPES[dtype]).train(backward)
    x = torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=backward)
    if not backward:

        def forward() -> object:
            with torch.no_grad():
                return layer(x)

        return forward
    leaves = [x, *layer.parameters()]
    with torch.no_grad():
        cotangent = torch.randn_like(layer(x)[0])

    def forward_backward() -> object:
        return torch.autograd.grad(layer(x)[0], leaves, cotangent)

    return forward_backward


def qrnn_call(cell: Cell) -> Call:
    """Make the call of a cell's QRNN layer."""
    size = cell.hidden_size
    layer = QRNN(size, size, batch_first=True, kernel_size=cell.kernel_size)
    shape = (cell.batch, cell.length, size)
    return layer_call(layer, shape, cell.dtype, cell.device, cell.backward)


def lstm_call(cell: Cell, *, dtype: str | None = None, size: int | None = None) -> Call:
    """Make the call of a cell's `nn.LSTM`: one over the whole sequence.

    It reads time first and the QRNN batch first: each gets its own order, none pays for a
    transposition.
    """
    size = size or cell.hidden_size
    shape = (cell.length, cell.batch, size)
    return layer_call(nn.LSTM(size, size), shape, dtype or cell.dtype, cell.device, cell.backward)


class Comparison(NamedTuple):
    """Seconds of both layers in a cell."""

    qrnn: Timing
    lstm: Timing

    @property
    def ratio(self) -> float:
        """The speed of the QRNN as a multiple of the LSTM's."""
        return times_as_fast(self.qrnn, self.lstm)


def compare(cell: Cell, *, seconds: float = 1.0, graph: bool = False) -> Comparison:
    """Time both layers of `cell` in turns; with `graph` both as CUDA graphs."""
    calls = {"qrnn": qrnn_call(cell), "lstm": lstm_call(cell)}
    if graph:
        calls = {name: captured(call) for name, call in calls.items()}
    found = interleave(calls, device=cell.device, seconds=seconds)
    return Comparison(found["qrnn"], found["lstm"])


def compare_cells(
    cells: Iterable[tuple[int, int]],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    seconds: float = 180.0,
    graph: bool = False,
    on_cell: Callable[[], object] = lambda: None,
) -> dict[tuple[int, int], float]:
    """Measure ratios by (batch, length), small cells first, for about `seconds` in all.

    A cell that would end too late, judged by what the steps before it took, is left out.

    Args:
        cells: (batch, length) of each.
        device, dtype, graph: As in `Cell` and `compare`.
        threads: Of the CPU; None for as many as torch has.
        seconds: Limit of the whole.
        on_cell: Called after every cell, measured or left out.
    """
    by_size = sorted(cells, key=lambda cell: (cell[0] * cell[1], cell))
    found: dict[tuple[int, int], float] = {}
    started, per_step = time.perf_counter(), 0.0
    with using_threads(threads):
        for number, (batch, length) in enumerate(by_size):
            began = time.perf_counter()
            left = seconds - (began - started)
            if per_step * batch * length <= left:
                share = min(left / (len(by_size) - number), 2.0)
                cell = Cell(batch, length, dtype, device)
                result = compare(cell, seconds=share, graph=graph)
                found[batch, length] = result.ratio
                # The rounds that no limit can cut, and the first call of each.
                round_time = result.qrnn.median + result.lstm.median
                per_step = (5 + 1) * round_time / (batch * length)
            on_cell()
    return found


def speed_table(found: dict[tuple[int, int], float], cells: Iterable[tuple[int, int]]) -> str:
    """Write ratios by batch and length, the paper's in brackets; "-" where there was no time."""
    cells = list(cells)
    batches = sorted({batch for batch, _ in cells})
    lengths = sorted({length for _, length in cells})

    def text(batch: int, length: int) -> str:
        ours = f"{found[batch, length]:.2f}" if (batch, length) in found else "-"
        paper = paper_speedup(batch, length)
        return ours if paper is None else f"{ours} ({paper})"

    rows = [["batch \\ T", *map(str, lengths)]]
    rows += [[str(batch), *(text(batch, length) for length in lengths)] for batch in batches]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
    return "\n".join(lines)


@functools.cache
def check_device(device: str, dtype: str) -> None:
    """Say in a sentence what cannot be measured here.

    Raises:
        ValueError: If there is no such device, or it does not compute in `dtype`.
    """
    try:
        torch.zeros(1, device=device, dtype=DTYPES[dtype]).sigmoid()
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"`device` must be one that computes in {dtype} here, but is {device!r}: {first}"
        ) from error
