#!/usr/bin/env python
"""Compare a QRNN layer with `nn.LSTM` and with a Python loop, and translation models as well.

    python benchmarks/bench_layer.py --device cpu --grid paper --check   # the paper's 30 cells
    python benchmarks/bench_layer.py --grid goals --threads 1 2 --dtypes float32 bfloat16 --check
    python benchmarks/bench_layer.py --device cuda --grid goals --check
    python benchmarks/bench_layer.py --table runs/bench_layer.jsonl      # measures nothing

One `hf_qrnn.QRNN` layer (k = 2) and one `nn.LSTM` of as many units take turns, same threads, same
dtype; each reads the order of dimensions it likes (batch first, time first), each is one call over
the whole sequence. Forward is inference without a graph; forward+backward gives the gradients of
the input and of all parameters. On a GPU there are two LSTMs, A as users get it and B the best of
cuDNN (float16, units and inputs padded to a multiple of 128, so that its persistent kernel runs),
each once eager and once as a CUDA graph, as the QRNN is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from controls import LoopQRNN, LSTMTranslator
from ending import end_process
from goals import BFLOAT16_GRID, GRID, LONG, SINGLE
from peers import kernel_names
from results import BOTH, FORWARD, Record, versus
from running import add_options, run

from hf_qrnn import QRNN, QRNNConfig, QRNNForConditionalGeneration, use_backend
from hf_qrnn.model.backends_qrnn import unavailable
from hf_qrnn.speed.paper_table import (
    DTYPES,
    HIDDEN_SIZE,
    PAPER_CELLS,
    Cell,
    check_device,
    layer_call,
    lstm_call,
    paper_speedup,
    qrnn_call,
)
from hf_qrnn.speed.timing import (
    Call,
    available_cores,
    captured,
    environment,
    interleave,
    stream_copy,
    using_threads,
)

PERSISTENT_MULTIPLE, PERSISTENT_BATCH = 128, 128  # where cuDNN's persistent kernel runs
POOL_BYTES = 4  # numbers an element that fo-pooling must move: z, f, o in, h out


@dataclass(frozen=True)
class Translation:
    """Sizes of the translation model and its batch; characters a line as in the paper's data."""

    batch: int = 16
    source: int = 103
    target: int = 93
    hidden_size: int = HIDDEN_SIZE
    num_layers: int = 4
    vocab_size: int = 187


@dataclass(frozen=True)
class Grid:
    """The cells that one run measures, each (batch, length)."""

    cells: tuple[tuple[int, int], ...]
    half_cells: tuple[tuple[int, int], ...]  # in bfloat16 and float16 on a CPU
    loop_cells: tuple[tuple[int, int], ...] = ()
    translation: Translation | None = None
    hidden_size: int = HIDDEN_SIZE


GRIDS = {
    "paper": Grid(PAPER_CELLS, PAPER_CELLS),
    "goals": Grid(GRID + SINGLE, BFLOAT16_GRID, LONG, Translation()),
    "smoke": Grid(((1, 4), (2, 8)), ((2, 8),), ((2, 8),), Translation(2, 5, 4, 8, 2, 11), 16),
}
# On a GPU the paper's grid holds goals too.
GPU_GOALS = Grid(PAPER_CELLS + SINGLE, PAPER_CELLS + SINGLE, (), Translation())


def _fields(cell: Cell, bench: str, peer: str, timing: str) -> Record:
    """List the fields by which a record of a cell is found."""
    return {
        "bench": bench,
        "peer": peer,
        "device": torch.device(cell.device).type,
        "dtype": cell.dtype,
        "threads": torch.get_num_threads(),
        "mode": BOTH if cell.backward else FORWARD,
        "timing": timing,
        "batch": cell.batch,
        "length": cell.length,
        "hidden": cell.hidden_size,
        "kernel_size": cell.kernel_size,
    }


# ------------------------------------------------------------------ layers


def cpu_cell(cell: Cell, seconds: float) -> Iterator[Record]:
    """Measure one cell on a CPU."""
    calls = {"qrnn": qrnn_call(cell), "nn.LSTM": lstm_call(cell)}
    found = interleave(calls, seconds=seconds)
    yield _layer_record(cell, "nn.LSTM", "eager", versus(found["qrnn"], found["nn.LSTM"]))


def _layer_record(cell: Cell, peer: str, timing: str, figures: Record) -> Record:
    record = {**_fields(cell, "layer", peer, timing), **figures}
    paper = paper_speedup(cell.batch, cell.length)
    return record if paper is None else {**record, "paper_ratio": paper}


def gpu_calls(cell: Cell) -> dict[str, Call]:
    """Make the calls of a cell: the QRNN, both LSTMs and the bare matrix product."""
    calls = {"qrnn": qrnn_call(cell), "nn.LSTM A": lstm_call(cell)}
    # cuDNN's persistent kernel also wants rows in eights; one row is timed all the same.
    if cell.batch <= PERSISTENT_BATCH and cell.batch % 8 == 0:
        calls["nn.LSTM B"] = lstm_call(cell, dtype="float16", size=persistent_size(cell))
    if not cell.backward:
        calls["gemm"] = gemm_call(cell)
    return calls


def persistent_size(cell: Cell) -> int:
    """Return the units of the cell, padded to what the persistent kernel takes."""
    return -(-cell.hidden_size // PERSISTENT_MULTIPLE) * PERSISTENT_MULTIPLE


def gemm_call(cell: Cell) -> Call:
    """Make the layer's matrix product alone: windows of k inputs to three gates, no bias."""
    options: Any = {"device": cell.device, "dtype": DTYPES[cell.dtype]}
    size = cell.hidden_size
    x = torch.randn(cell.batch * cell.length, cell.kernel_size * size, **options)
    weight = torch.randn(3 * size, cell.kernel_size * size, **options)
    out = torch.empty(x.shape[0], 3 * size, **options)
    return lambda: torch.mm(x, weight.t(), out=out)


def gpu_cell(cell: Cell, seconds: float, copy_rate: float) -> Iterator[Record]:
    """Measure one cell on a GPU, eager, then as graphs; `copy_rate` in bytes per second."""
    calls = gpu_calls(cell)
    for timing in ("eager", "graph"):
        if timing == "graph":
            calls = {name: captured(call) for name, call in calls.items()}
        found = interleave(calls, device=cell.device, seconds=seconds)
        ours = found.pop("qrnn")
        gemm = found.pop("gemm", None)
        for peer, theirs in found.items():
            yield _layer_record(cell, peer, timing, versus(ours, theirs))
        if gemm is not None and timing == "graph":
            size = DTYPES[cell.dtype].itemsize * POOL_BYTES
            floor = size * cell.batch * cell.length * cell.hidden_size / copy_rate
            yield {
                **_fields(cell, "gemm", "bare GEMM + byte floor", timing),
                "ms": round(1e3 * ours.median, 5),
                "gemm_ms": round(1e3 * gemm.median, 5),
                "floor_ms": round(1e3 * floor, 5),
                "ratio": round(ours.median / (gemm.median + floor), 4),
            }


def cudnn_kernels(cell: Cell) -> Iterator[Record]:
    """Record which kernels cuDNN chooses for both LSTMs: what the columns A and B are."""
    for name, call in gpu_calls(cell).items():
        if name.startswith("nn.LSTM"):
            yield {**_fields(cell, "kernels", name, "eager"), "kernels": kernel_names(call)}


def loop_cell(cell: Cell, seconds: float) -> Iterator[Record]:
    """Measure the layer against the same function as a loop in Python."""
    size = cell.hidden_size
    layer = QRNN(size, size, batch_first=True, kernel_size=2)
    shape = (cell.length, cell.batch, size)
    loop = layer_call(LoopQRNN(layer), shape, cell.dtype, cell.device, cell.backward)
    found = interleave({"qrnn": qrnn_call(cell), "loop": loop}, device=cell.device, seconds=seconds)
    yield {**_fields(cell, "loop", "LoopQRNN", "eager"), **versus(found["qrnn"], found["loop"])}


# ------------------------------------------------------------------ whole models


def training_step(model: torch.nn.Module, sizes: Translation, device: str, dtype: str) -> Call:
    """Forward, backward and Adam on one batch of random ids without pads."""
    model = model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> torch.Tensor:
        shape = (sizes.batch, length)
        return torch.randint(4, sizes.vocab_size, shape, generator=generator).to(device)

    inputs = {"input_ids": ids(sizes.source), "labels": ids(sizes.target)}
    kind, half = torch.device(device).type, dtype in ("bfloat16", "float16")

    def step() -> None:
        with torch.autocast(kind, DTYPES[dtype], enabled=half):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def qrnn_translator(sizes: Translation) -> QRNNForConditionalGeneration:
    """Make the model of section 3.3: the defaults of its config, in these sizes."""
    return QRNNForConditionalGeneration(
        QRNNConfig(
            vocab_size=sizes.vocab_size,
            embedding_size=sizes.hidden_size,
            hidden_size=sizes.hidden_size,
            encoder_layers=sizes.num_layers,
            decoder_layers=sizes.num_layers,
        )
    )


def translation(sizes: Translation, dtype: str, device: str, seconds: float) -> Iterator[Record]:
    """Train the translation model and that of LSTM layers in turns, in characters a second.

    On a GPU also by its Triton kernels, as a model folder without the package runs, against the
    compiled ones.
    """
    lstm = LSTMTranslator(sizes.vocab_size, sizes.hidden_size, sizes.num_layers)
    qrnn = qrnn_translator(sizes)
    calls = {
        "qrnn": training_step(qrnn, sizes, device, dtype),
        "nn.LSTM": training_step(lstm, sizes, device, dtype),
    }
    pairs = {"nn.LSTM": "qrnn"}
    if torch.device(device).type == "cuda":
        reasons = [unavailable(x, torch.device(device)) for x in ("compiled", "triton")]
        for reason in filter(None, reasons):
            yield {"bench": "translation", "peer": "compiled", "skipped": reason}
        if not any(reasons):
            pairs["compiled"] = "triton"
            for backend in ("compiled", "triton"):
                step = training_step(qrnn_translator(sizes), sizes, device, dtype)
                calls[backend] = _by(backend, step)
    found = interleave(calls, device=device, seconds=seconds)
    characters = sizes.batch * (sizes.source + sizes.target)
    for peer, ours in pairs.items():
        yield {
            "bench": "translation",
            "peer": peer,
            "of": ours,
            "device": torch.device(device).type,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "layers": sizes.num_layers,
            "hidden": sizes.hidden_size,
            "rows": sizes.batch,
            "characters": [sizes.source, sizes.target],
            "parameters": sum(p.numel() for p in qrnn.parameters()),
            "lstm_parameters": sum(p.numel() for p in lstm.parameters()),
            "characters_per_second": round(characters / found[ours].median),
            "peer_characters_per_second": round(characters / found[peer].median),
            **versus(found[ours], found[peer]),
        }


def _by(backend: str, call: Call) -> Call:
    def forced() -> object:
        with use_backend(backend):
            return call()

    return forced


# ------------------------------------------------------------------ running


def measure(options: argparse.Namespace) -> Iterator[Record]:
    """Measure everything that the options ask for."""
    device, on_gpu = options.device, torch.device(options.device).type == "cuda"
    grid = GPU_GOALS if on_gpu and options.grid == "goals" else GRIDS[options.grid]
    yield {"bench": "environment", **environment(device), "command": sys.argv[1:]}
    copy = stream_copy(device)
    rate = copy.rate(
        interleave({"copy": copy.call}, device=device, seconds=min(1.0, options.seconds))["copy"]
    )
    yield {"bench": "copy", "gb_per_second": round(rate, 2)}
    modes = [False, True] if options.mode == "both" else [options.mode == BOTH]
    for dtype in options.dtypes or (["bfloat16"] if on_gpu else ["float32"]):
        check_device(device, dtype)
        if on_gpu:
            yield from cudnn_kernels(Cell(8, 512, dtype, device, hidden_size=grid.hidden_size))
        for threads in [None] if on_gpu else options.threads:
            with using_threads(threads):
                yield from measure_grid(grid, dtype, device, modes, options.seconds, rate)


def measure_grid(
    grid: Grid, dtype: str, device: str, modes: list[bool], seconds: float, rate: float
) -> Iterator[Record]:
    """Measure all cells, the loop and the whole model in one dtype with one number of threads."""
    on_gpu, half = torch.device(device).type == "cuda", DTYPES[dtype].itemsize == 2
    cells = grid.half_cells if half and not on_gpu else grid.cells
    for backward in modes:
        for batch, length in cells:
            cell = Cell(batch, length, dtype, device, backward, grid.hidden_size)
            if on_gpu:
                yield from gpu_cell(cell, seconds, rate * 1e9)
            else:
                yield from cpu_cell(cell, seconds)
    if not on_gpu and half:
        return  # the goals of what follows are those of float32
    # The loop gains nothing from threads: one is enough to know.
    for backward in modes if torch.get_num_threads() == 1 else []:
        for batch, length in grid.loop_cells:
            cell = Cell(batch, length, dtype, device, backward, grid.hidden_size)
            yield from loop_cell(cell, seconds)
    if grid.translation is not None and True in modes:
        yield from translation(grid.translation, dtype, device, seconds)


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "bench_layer", threads=[1, 2] if available_cores() > 1 else [1])
    add = parser.add_argument
    add(
        "--grid",
        default="goals",
        choices=GRIDS,
        help="cells to measure: the paper's 30, the goals', or a few tiny ones (goals)",
    )
    add(
        "--mode",
        default="both",
        choices=["both", FORWARD, BOTH],
        help="what to time (both, one after the other)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print and judge; the exit status."""
    parser = make_parser()
    return run(parser, parser.parse_args(argv), measure)


if __name__ == "__main__":
    end_process(main)
