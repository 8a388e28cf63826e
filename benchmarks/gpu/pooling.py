"""Group b: pooling beside the copy rate, and the two forms of its kernels beside each other.

Shapes: B batch, T time, H units.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import bench_pooling
import torch

from hf_qrnn import kernels
from hf_qrnn.speed.timing import Call, captured, interleave, times_as_fast

from . import operations
from .operations import Operations
from .plan import ROOT, Record, Setting, SkippedError

Shape = tuple[int, int, int]
# B x T x H on both sides of the switch: 2k to 262k states, below and above a tile, long.
FORM_SHAPES: list[Shape] = [
    (batch, length, 1024) for length in (64, 512) for batch in (2, 8, 16, 24, 32, 48, 64, 128)
] + [(8, 512, 320), (64, 128, 320), (128, 512, 320), (256, 512, 320), (32, 24, 320), (32, 32, 320)]
FORM_BYTES = 64 << 20  # of gates a shape: more than a cache that two forms share
FLOAT32_SHAPES = ["32x1024x1024", "8x512x320", "128x128x320", "256x512x320"]
PLAN = ROOT / "hf_qrnn/kernels/csrc/cuda/pool_plan.h"


def benchmark(name: str, *options: str) -> Iterator[Record]:
    """Run a benchmark of this folder's parent and yield its records as they come."""
    module: Any = importlib.import_module(name)
    for record in module.measure(module.make_parser().parse_args(options)):
        skipped = {"status": "skipped", "reason": record.get("skipped")}
        yield {**(skipped if "skipped" in record else {"status": "measured"}), **record}


def pooling(setting: Setting) -> Iterator[Record]:
    """Measure both directions against the copy rate, bytes counted, in bfloat16 and float32."""
    options = ["--device", setting.device, "--seconds", str(setting.seconds)]
    if setting.dry:
        options += ["--megabytes", "1", "--threads", "1"]
    for dtype, shapes in (
        ("bfloat16", ["2x40x16"] if setting.dry else []),
        ("float32", ["2x40x16"] if setting.dry else FLOAT32_SHAPES),
    ):
        chosen = ["--shapes", *shapes] if shapes else []
        yield from benchmark("bench_pooling", *options, "--dtypes", dtype, *chosen)


# ------------------------------------------------------------------ the two forms


def forms(setting: Setting) -> Iterator[Record]:
    """Measure both forms at each shape, beside the one that the table chooses; then re-fit it."""
    found = operations.native(setting)
    shapes = [(2, 40, 8), (3, 8, 8)] if setting.dry else FORM_SHAPES
    records = []
    for dtype in (torch.bfloat16, torch.float32):
        for shape in shapes:
            for record in _form(setting, found, shape, dtype):
                records.append(record)
                yield record
    yield from refit(records)


def _form(
    setting: Setting, found: Operations, shape: Shape, dtype: torch.dtype
) -> Iterator[Record]:
    calls: dict[tuple[str, str], Call] = {}
    for form in ("stream", "split"):
        with forced(found, form):
            for mode, call in _calls(setting, found, shape, dtype).items():
                # Captured while the form is forced, a graph keeps it.
                keep = _under(found, form, call) if setting.dry else captured(call)
                calls[form, mode] = keep
    timings = interleave(calls, device=setting.device, seconds=setting.seconds)
    least, most = switch()
    batch, length, hidden = shape
    chosen = "split" if length >= least and batch * hidden <= most else "stream"
    for mode in ("forward", "backward"):
        stream, split = timings["stream", mode], timings["split", mode]
        ratio = times_as_fast(split, stream)
        yield {
            "status": "measured",
            "bench": "form",
            "device": setting.device,
            "dtype": str(dtype).removeprefix("torch."),
            "mode": mode,
            "batch": batch,
            "length": length,
            "hidden": hidden,
            "stream_ms": round(1e3 * stream.median, 5),
            "split_ms": round(1e3 * split.median, 5),
            "ratio": round(ratio, 4),
            "chosen": chosen,
            "is_faster": (ratio >= 1) == (chosen == "split"),
        }


def _calls(
    setting: Setting, found: Operations, shape: Shape, dtype: torch.dtype
) -> dict[str, Call]:
    """Make one pass over buffers that no cache holds, for each direction."""
    batch, length, hidden = shape
    size = batch * length * 3 * hidden * dtype.itemsize
    count = 1 if setting.dry else min(max(1, FORM_BYTES // size), 64)
    options: dict[str, Any] = {"device": setting.device}
    gates = [torch.randn(batch, length, 3 * hidden, **options).to(dtype) for _ in range(count)]
    grads = [torch.randn(batch, length, hidden, **options).to(dtype) for _ in range(count)]

    def forward(i: int) -> tuple[torch.Tensor, ...]:
        return found.forward(gates[i], None, None, None, None, 1, 0.0, False, False, True)

    tiles = [forward(i)[3] for i in range(count)]

    def backward(i: int) -> tuple[torch.Tensor, ...]:
        return found.backward(grads[i], None, None, gates[i], *[None] * 4, tiles[i], 1, 0.0, False)

    return {
        "forward": bench_pooling.rounds(forward, count),
        "backward": bench_pooling.rounds(backward, count),
    }


class forced:  # noqa: N801 (used as a function)
    """A block in which one form of the kernels runs, whatever the table says."""

    def __init__(self, found: Operations, form: str) -> None:
        if found.choose is None:
            raise SkippedError("these kernels have one form")
        self.choose: Callable[[str], str] = found.choose
        self.form = form

    def __enter__(self) -> None:
        self.choose(self.form)

    def __exit__(self, *_: object) -> None:
        self.choose("auto")


def _under(found: Operations, form: str, call: Call) -> Call:
    def run() -> None:
        with forced(found, form):
            call()

    return run


def switch() -> tuple[int, int]:
    """Read the table's first rule: the least steps and the most states of the split form."""
    text = PLAN.read_text(encoding="utf-8")
    found = re.search(r"\{(\d+), (\d+), Form::split\}", text)
    assert found, f"no rule in {PLAN}"
    return int(found[1]), int(found[2])


def refit(records: list[Record]) -> Iterator[Record]:
    """Say between which numbers of states the split form stops being the faster one."""
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for x in records:
        groups.setdefault((x["dtype"], x["mode"], x["length"]), []).append(x)
    for (dtype, mode, length), group in groups.items():
        states = sorted((x["batch"] * x["hidden"], x["ratio"]) for x in group)
        split = [count for count, ratio in states if ratio >= 1]
        stream = [count for count, ratio in states if ratio < 1]
        yield {
            "status": "measured",
            "bench": "refit",
            "dtype": dtype,
            "mode": mode,
            "length": length,
            "split_up_to": max(split, default=0),
            "stream_from": min(stream, default=None),
            "chosen_is_faster": f"{sum(x['is_faster'] for x in group)} of {len(group)}",
        }


# ------------------------------------------------------------------ registers


def registers(setting: Setting) -> Iterator[Record]:
    """Read registers, stack and shared memory of every kernel, and the warps that find room."""
    if shutil.which("cuobjdump") is None:
        raise SkippedError("no cuobjdump on PATH")
    path = kernels.find().path
    if path is None:
        raise SkippedError("there is no library")
    done = subprocess.run(
        ["cuobjdump", "--dump-resource-usage", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = list(resources(done.stdout))
    if not found:
        raise SkippedError(f"cuobjdump told nothing: {(done.stderr or done.stdout)[-300:]}")
    spilled = [x["kernel"] for x in found if x["stack"] > 0]
    yield {"status": "measured", "bench": "registers", "kernels": found, "with_stack": spilled}


def resources(text: str) -> Iterator[Record]:
    """Read cuobjdump's report; a multiprocessor has 65,536 registers and 227 KB for blocks."""
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    for name, *numbers in re.findall(pattern, text):
        used, stack, shared = map(int, numbers)
        kind = re.search(r"(stream|split|connect|sum)_(forward|backward|parts)\w*", name)
        threads = 256 if kind is None or kind[1] != "stream" else 64
        # Registers are given to warps in packs of 256, shared memory with 1 KB a block.
        warps = threads // 32
        by_registers = 65_536 // (max(1, -(-used * 32 // 256) * 256) * warps)
        by_shared = 227 * 1024 // (shared + 1024)
        blocks = min(by_registers, by_shared, 2048 // threads, 32)
        yield {
            "kernel": name,
            "registers": used,
            "stack": stack,
            "shared": shared,
            "warps": blocks * warps,
        }
