#!/usr/bin/env python
"""Compare pooling, forward and backward, with a plain copy of as many bytes in the same run.

    python benchmarks/bench_pooling.py --check                            # CPU, 1 thread
    python benchmarks/bench_pooling.py --threads 1 2 --dtypes float32 bfloat16
    python benchmarks/bench_pooling.py --device cuda --check
    python benchmarks/bench_pooling.py --table runs/bench_pooling.jsonl

The raw operations of each backend, fo-pooling without options, go round through buffers that
together do not fit into a cache; the outputs of a round are kept, so that they too lie in memory,
in pages that have been used before. A copy takes its turn in every round. Bytes are those that the
operation must move: z, f, o in and h out forward; those and the gradient of h in and three
gradients out backward; the state of every 32nd step in training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from ending import end_process
from peers import PEERS, load
from results import BOTH, FORWARD, Record
from running import add_options, run

from hf_qrnn.model.backends_qrnn import backend_named, unavailable
from hf_qrnn.model.pooling_qrnn import NUM_GATES, TILE
from hf_qrnn.speed.paper_table import DTYPES, HIDDEN_SIZE, PAPER_CELLS, check_device
from hf_qrnn.speed.timing import (
    Call,
    Timing,
    beyond_caches,
    captured,
    environment,
    interleave,
    stream_copy,
    times_as_fast,
    using_threads,
)

BACKWARD = "backward"
Shape = tuple[int, int, int]
# (B, T, H); on a GPU many channels, then the paper's grid.
CPU_SHAPES: list[Shape] = [(16, 512, HIDDEN_SIZE)]
MANY_CHANNELS: list[Shape] = [(32, 1024, 1024), (256, 1024, 1024), (32, 4096, 2048)]
PEER_SHAPE: Shape = (32, 8192, 1024)
GPU_SHAPES = MANY_CHANNELS + [(batch, length, HIDDEN_SIZE) for batch, length in PAPER_CELLS]
# This many of the paper's smallest cells do not fill a GPU's cache; more would tell no more.
MAX_BUFFERS = 512
# The native backend under the name that records have had from the first.
RECORDED = ("compiled", "triton", "torch")
LEAST_SECONDS = 3e-6  # of a kernel on a GPU, whatever it does


class Buffers(NamedTuple):
    """Gates (B, T, 3H), gradients of h (B, T, H) and tiles, one of each for every buffer."""

    gates: list[torch.Tensor]
    grads: list[torch.Tensor]
    tiles: list[torch.Tensor]


def forward(backend: str, gates: torch.Tensor, *, tiles: bool = False) -> tuple[torch.Tensor, ...]:
    """Run the raw forward operation of a backend."""
    arguments = (gates, None, None, None, None, "fo", 0.0, False, False, tiles)
    return backend_named(backend).forward(*arguments)


def backward(
    backend: str, grad_h: torch.Tensor, gates: torch.Tensor, tiles: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Run the raw backward operation of a backend."""
    arguments = (grad_h, None, None, gates, None, None, None, None, tiles, "fo", 0.0, False)
    return backend_named(backend).backward(*arguments)


def bytes_per_element(mode: str, element_size: int) -> float:
    """Count the bytes that must move for an element of h in one direction, or in both."""
    num_gates, tile = NUM_GATES["fo"], 4 / TILE
    sizes = {
        FORWARD: (num_gates + 1) * element_size,
        BACKWARD: (2 * num_gates + 1) * element_size + tile,
    }
    return sizes[mode] if mode in sizes else sum(sizes.values()) + tile


def make_buffers(shape: Shape, dtype: torch.dtype, device: str, num_bytes: int) -> Buffers:
    """Make as many buffers as hold `num_bytes` of gates."""
    batch, length, hidden = shape
    size = batch * length * 3 * hidden * dtype.itemsize
    count = min(max(1, -(-num_bytes // size)), MAX_BUFFERS)
    gates = [torch.randn(batch, length, 3 * hidden, device=device).to(dtype) for _ in range(count)]
    grads = [torch.randn(batch, length, hidden, device=device).to(dtype) for _ in range(count)]
    # Tiles of the gates themselves, so that the backward pass recomputes what is there.
    backend = "compiled" if unavailable("compiled", gates[0].device) is None else "torch"
    tiles = [forward(backend, x, tiles=True)[3] for x in gates]
    return Buffers(gates, grads, tiles)


def rounds(call: Callable[[int], object], count: int) -> Call:
    """Call `call` for every buffer, and keep its outputs until the next round: no page is new."""
    kept: list[object] = [None] * count

    def run() -> None:
        for index in range(count):
            kept[index] = call(index)

    return run


def check_values(backend: str, buffers: Buffers) -> float:
    """Return a backend's largest error against the definition in float64, on part of the data.

    Raises:
        RuntimeError: If it is above the rounding of the dtype: then its speed is of no interest.
    """
    length = min(buffers.gates[0].shape[1], 3 * TILE + 1)
    gates, grad = (x[0][:2, :length].contiguous() for x in (buffers.gates, buffers.grads))
    h, _, _, tiles = forward(backend, gates, tiles=True)
    exact = gates.double()
    wanted_h, _, _, exact_tiles = forward("torch", exact, tiles=True)
    pairs = [(h, wanted_h)]
    wanted_grad = backward("torch", grad.double(), exact, exact_tiles)[0]
    pairs.append((backward(backend, grad, gates, tiles)[0], wanted_grad))
    tolerance = 4 * torch.finfo(gates.dtype).eps + 1e-6
    error = max(
        float(((x.double() - want).abs() / want.abs().clamp(min=1)).max()) for x, want in pairs
    )
    if not error <= tolerance:
        raise RuntimeError(f"{backend} is off by {error:.2g} at {tuple(gates.shape)}.")
    return error


def pool_calls(backend: str, buffers: Buffers) -> dict[str, Call]:
    """Make the calls of one pass over all buffers in each direction."""
    gates, grads, tiles = buffers
    return {
        FORWARD: rounds(lambda i: forward(backend, gates[i])[0], len(gates)),
        BACKWARD: rounds(lambda i: backward(backend, grads[i], gates[i], tiles[i])[0], len(gates)),
    }


def bench_shape(
    shape: Shape, dtype: str, device: str, seconds: float, num_bytes: int
) -> Iterator[Record]:
    """Measure every backend that works here, each direction, in turns with a copy."""
    on_gpu = torch.device(device).type == "cuda"
    buffers = make_buffers(shape, DTYPES[dtype], device, num_bytes)
    count, elements = len(buffers.gates), shape[0] * shape[1] * shape[2]
    copy = stream_copy(device, num_bytes)
    calls: dict[Any, Call] = {"copy": copy.call}
    errors = {}
    for backend in RECORDED:
        reason = unavailable(backend, buffers.gates[0].device)
        if reason is not None:
            yield {"bench": "pooling", "backend": backend, "skipped": f"{backend}: {reason}"}
        # The definition makes hundreds of small steps: on a GPU no peer in speed.
        elif not (on_gpu and backend == "torch"):
            errors[backend] = check_values(backend, buffers)
            calls |= {(backend, x): call for x, call in pool_calls(backend, buffers).items()}
    if on_gpu:
        calls = {name: captured(call) for name, call in calls.items()}
    found = interleave(calls, device=device, seconds=seconds)
    for backend in errors:
        for mode in (FORWARD, BACKWARD):
            each = found[backend, mode].split(count)
            size = bytes_per_element(mode, DTYPES[dtype].itemsize)
            # The same bytes, copied.
            floor = found["copy"].split(copy.num_bytes / (size * elements))
            record: Record = {
                "bench": "pooling",
                "backend": backend,
                "device": torch.device(device).type,
                "dtype": dtype,
                "threads": torch.get_num_threads(),
                "mode": mode,
                "timing": "graph" if on_gpu else "eager",
                **dict(zip(("batch", "length", "hidden"), shape, strict=True)),
                "ms": round(1e3 * each.median, 5),
                "ms_min": round(1e3 * each.minimum, 5),
                "rounds": len(each.seconds),
                "bytes_per_element": size,
                "megabytes": round(count * size * elements / 1e6, 1),
                "beyond_caches": num_bytes >= beyond_caches(device),
                "gb_per_second": round(size * elements / each.median / 1e9, 2),
                "copy_gb_per_second": round(copy.rate(found["copy"]), 2),
                "of_copy": round(times_as_fast(each, floor), 4),
                "max_error": errors[backend],
            }
            if each.busy:
                of_copy = times_as_fast(each.computing, floor.computing)
                record["of_copy_in_cpu_time"] = round(of_copy, 4)
            if on_gpu:
                least = Timing(tuple(max(x, LEAST_SECONDS) for x in floor.seconds))
                record["of_floor"] = round(1 / times_as_fast(each, least), 4)
            yield record


def bench_peers(shape: Shape, seconds: float, device: str = "cuda") -> Iterator[Record]:
    """Recurrences of other packages, per byte; a size at which launches do not count."""
    reason = unavailable("compiled", torch.device(device))
    if reason is not None:
        yield {"bench": "pooling", "peer": "all", "skipped": f"compiled: {reason}"}
        return
    gates, grads, _ = make_buffers(shape, torch.bfloat16, device, 1)

    def both() -> object:
        tiles = forward("compiled", gates[0], tiles=True)[3]
        return backward("compiled", grads[0], gates[0], tiles)

    elements = shape[0] * shape[1] * shape[2]
    ours = {FORWARD: lambda: forward("compiled", gates[0]), BOTH: both}
    for name in PEERS:
        peer = load(name, shape, device)
        if isinstance(peer, str):
            yield {"bench": "pooling", "peer": name, "skipped": peer}
            continue
        theirs = {FORWARD: (peer.forward, peer.forward_bytes), BOTH: (peer.both, peer.both_bytes)}
        for mode, (call, size) in theirs.items():
            own_size = bytes_per_element(mode, 2)
            found = interleave({"ours": ours[mode], "theirs": call}, device=device, seconds=seconds)
            yield {
                "bench": "pooling",
                "peer": name,
                "backend": "compiled",
                "device": torch.device(device).type,
                "dtype": "bfloat16",
                "mode": mode,
                "timing": "eager",
                **dict(zip(("batch", "length", "hidden"), shape, strict=True)),
                "gb_per_second": round(own_size * elements / found["ours"].median / 1e9, 1),
                "peer_gb_per_second": round(size * elements / found["theirs"].median / 1e9, 1),
                "ratio": round(times_as_fast(found["ours"], found["theirs"]) * own_size / size, 4),
            }


def measure(options: argparse.Namespace) -> Iterator[Record]:
    """Measure all shapes in all dtypes with all numbers of threads."""
    device, on_gpu = options.device, torch.device(options.device).type == "cuda"
    yield {"bench": "environment", **environment(device), "command": sys.argv[1:]}
    shapes = options.shapes or (GPU_SHAPES if on_gpu else CPU_SHAPES)
    num_bytes = options.megabytes * 10**6 if options.megabytes else beyond_caches(device)
    for dtype in options.dtypes or (["bfloat16"] if on_gpu else ["float32"]):
        check_device(device, dtype)
        for threads in [None] if on_gpu else options.threads:
            with using_threads(threads):
                for shape in shapes:
                    yield from bench_shape(shape, dtype, device, options.seconds, num_bytes)
    if on_gpu and not options.shapes:
        yield from bench_peers(PEER_SHAPE, options.seconds, device)


def _shape(text: str) -> Shape:
    batch, length, hidden = map(int, text.split("x"))
    return batch, length, hidden


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "bench_pooling", threads=[1])
    add = parser.add_argument
    add(
        "--shapes",
        nargs="+",
        type=_shape,
        metavar="BxTxH",
        help="sizes: rows x steps x units (the goals')",
    )
    add("--megabytes", type=int, help="size of all gates together (more than any cache holds)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print and judge; the exit status."""
    parser = make_parser()
    return run(parser, parser.parse_args(argv), measure)


if __name__ == "__main__":
    end_process(main)
