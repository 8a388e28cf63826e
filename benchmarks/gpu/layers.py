"""Group c: a layer beside cuDNN's LSTM, and beside recurrent layers of other packages.

Shapes: B batch, T time, H units.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import torch
from results import BOTH, versus

from hf_qrnn import QRNN
from hf_qrnn.speed.timing import Call, interleave

from .plan import Record, Setting
from .pooling import benchmark

PEER_SHAPES = [(8, 512, 320), (32, 1024, 320)]


def layers(setting: Setting) -> Iterator[Record]:
    """Measure the paper's thirty cells and one row, eager and as graphs, then whole models."""
    options = ["--device", setting.device, "--seconds", str(setting.seconds)]
    options += ["--grid", "smoke", "--threads", "1"] if setting.dry else ["--grid", "goals"]
    yield from benchmark("bench_layer", *options)


# ------------------------------------------------------------------ layers of other packages


def _min_gru(hidden: int) -> torch.nn.Module:
    """Make the layer of PyPI's minGRU-pytorch: a scan of logarithms over (B, T, H)."""
    layer: torch.nn.Module = importlib.import_module("minGRU_pytorch").minGRU(hidden)
    return layer


def _para_gru(hidden: int) -> torch.nn.Module:
    raise ImportError("no package index has ParaGRU: its sources must be at hand")


PEERS: dict[str, Callable[[int], torch.nn.Module]] = {
    "minGRU-pytorch": _min_gru,
    "ParaGRU-fused": _para_gru,
}


def peers(setting: Setting) -> Iterator[Record]:
    """Measure forward and backward, and the memory of both, against each layer that is there."""
    shapes = [(2, 8, 16)] if setting.dry else PEER_SHAPES
    for name, make in PEERS.items():
        for shape in shapes:
            try:
                yield _peer(setting, name, make, shape)
            # A package that does not fit this torch stops no other.
            except (ImportError, AttributeError, TypeError, OSError, RuntimeError) as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                skipped = {"status": "skipped", "reason": reason, "skipped": reason}
                yield {**skipped, "bench": "peer layer", "peer": name}
                break


def _peer(
    setting: Setting,
    name: str,
    make: Callable[[int], torch.nn.Module],
    shape: tuple[int, int, int],
) -> Record:
    batch, length, hidden = shape
    layers = {"ours": QRNN(hidden, hidden, batch_first=True), "theirs": make(hidden)}
    calls = {key: update(layer, shape, setting.device) for key, layer in layers.items()}
    memory = {key: peak_bytes(setting, call) for key, call in calls.items()}
    found = interleave(calls, device=setting.device, seconds=4 * setting.seconds)
    record: Record = {
        "status": "measured",
        "bench": "peer layer",
        "peer": name,
        "device": setting.device,
        "dtype": "bfloat16",
        "mode": BOTH,
        "timing": "eager",
        "batch": batch,
        "length": length,
        "hidden": hidden,
        **versus(found["ours"], found["theirs"]),
    }
    if memory["theirs"]:
        record["memory_ratio"] = round(memory["ours"] / memory["theirs"], 4)
    return record


def update(layer: torch.nn.Module, shape: tuple[int, int, int], device: str) -> Call:
    """Make a call of a layer, forward and backward, on random input (B, T, H) in bfloat16."""
    layer = layer.to(device, torch.bfloat16)
    x = torch.randn(shape, device=device).bfloat16().requires_grad_()
    leaves = [x, *layer.parameters()]

    def first(result: object) -> torch.Tensor:
        tensor = result[0] if isinstance(result, tuple) else result
        assert isinstance(tensor, torch.Tensor)
        return tensor

    with torch.no_grad():
        cotangent = torch.randn_like(first(layer(x)))
    return lambda: torch.autograd.grad(first(layer(x)), leaves, cotangent, allow_unused=True)


def peak_bytes(setting: Setting, call: Call) -> int:
    """Return the most bytes that a call holds beside what was there; 0 where no GPU counts."""
    if setting.dry:
        return 0
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
