"""Values and gradients of the kernels against the definition in float64, and harder cases.

Shapes: B batch, T time, H units.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hf_qrnn.kernels import POOLING_NUMBERS
from hf_qrnn.model.backends_qrnn import connection_kernels, unavailable, use_backend
from hf_qrnn.model.pooling_qrnn import NUM_GATES, pool, state_dtype

from . import operations
from .operations import Operations
from .plan import Record, Setting

Shape = tuple[int, int, int]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of numbers in the gates' dtype and in the state's, relative to max(1, |expected|).
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2**-8, 1e-5),
    torch.float16: (2**-11, 1e-5),
}
# Twenty: one step, one channel, odd sizes, tiles and slices that end inside, both forms on both
# sides of the table of kernels/csrc/cuda/pool_plan.h.
SHAPES: list[Shape] = [
    (2, 1, 1), (3, 37, 5), (4, 200, 64), (2, 31, 320), (128, 70, 258), (1, 1000, 7), (1, 32, 320),
    (8, 33, 320), (8, 128, 320), (103, 64, 320), (102, 64, 321), (5, 63, 97), (64, 31, 512),
    (65, 32, 512), (1, 129, 1023), (7, 5, 2), (300, 3, 110), (16, 257, 32), (2, 96, 640),
    (1, 512, 16),
]  # fmt: skip
FEW = SHAPES[:5]
TINY: list[Shape] = [(2, 37, 3), (1, 1, 1)]
SMOKE: list[Shape] = [
    (3, 37, 5), (2, 140, 66), (1, 33, 1), (2, 64, 8), (4, 7, 10), (1, 40, 34),
]  # fmt: skip


def arguments(
    pooling: str, shape: Shape, dtype: torch.dtype, device: str, options: bool
) -> dict[str, torch.Tensor | None]:
    """Draw everything the operations take at random, on `device`."""
    batch, length, hidden = shape
    generator = torch.Generator().manual_seed(1)
    state = state_dtype(dtype)

    def normal(*sizes: int, kind: torch.dtype = dtype) -> torch.Tensor:
        x = torch.randn(*sizes, generator=generator, dtype=torch.float64)
        # Converted here, then copied: a sanitizer that watches our kernels alone sees the copy.
        return x.to(kind).to(device)

    channels = NUM_GATES[pooling] * hidden
    given: dict[str, torch.Tensor | None] = {
        "gates": normal(batch, length, channels),
        "bias": normal(batch, channels) if options else None,
        "initial_state": normal(batch, hidden, kind=state) if options else None,
        "mask": None,
        "seed": torch.tensor(7, device=device) if options else None,
    }
    if options:
        given["mask"] = (torch.rand(batch, length, generator=generator) < 0.8).to(device)
    given |= {
        "grad_h": normal(batch, length, hidden),
        "grad_c": normal(batch, length, hidden, kind=state),
        "grad_state": normal(batch, hidden, kind=state),
    }
    return given


def differences(
    found: Operations, pooling: str, shape: Shape, dtype: torch.dtype, device: str, options: bool
) -> dict[str, float]:
    """Compute every result's error against the definition in float64, over its tolerance."""
    given = arguments(pooling, shape, dtype, device, options)
    grads = [given.pop(name) for name in ("grad_h", "grad_c", "grad_state")]
    number, zoneout = POOLING_NUMBERS[pooling], 0.3 if options else 0.0
    out = found.forward(*given.values(), number, zoneout, options, True, True)
    back = found.backward(*grads, *given.values(), out[3], number, zoneout, options)

    exact = {name: None if x is None else x.cpu() for name, x in given.items()}
    leaves = [name for name in ("gates", "bias", "initial_state") if exact[name] is not None]
    for name in leaves:
        exact[name] = exact[name].double().requires_grad_()  # type: ignore[union-attr]
    chosen = {"zoneout": zoneout, "reverse": options, "return_c": True, "backend": "torch"}
    wanted = pool(pooling=pooling, **chosen, **exact)  # type: ignore[arg-type]
    wanted_back = torch.autograd.grad(
        list(wanted),
        [exact[name] for name in leaves],  # type: ignore[misc]
        [g.cpu().double() for g in grads if g is not None],
    )
    pairs = dict(zip(("h", "c", "state"), zip(out, wanted, strict=False), strict=True))
    results = dict(zip(("gates", "bias", "initial_state"), back, strict=True))
    for name, want in zip(leaves, wanted_back, strict=True):
        pairs[f"grad_{name}"] = (results[name], want)
    errors = {}
    for name, (x, want) in pairs.items():
        tolerance = TOLERANCES[dtype][0 if x.dtype == dtype else 1]
        error = (x.detach().cpu().double() - want.detach()).abs() / want.detach().abs().clamp(min=1)
        # A comparison that NaN passes would be none.
        errors[name] = float(error.nan_to_num(nan=float("inf")).max()) / tolerance
    return errors


def compare(found: Operations, device: str, shapes: Sequence[Shape]) -> Iterator[Record]:
    """Check values and gradients over kinds, dtypes and shapes; a record for each kind.

    Every other case has all options: bias, first state, mask, zoneout and the other direction.
    """
    for pooling in POOLING_NUMBERS:
        wrong, checked, worst = [], 0, 0.0
        cases = itertools.product(enumerate(DTYPES), enumerate(shapes))
        for (i, dtype), (k, shape) in cases:
            options = (i + k) % 2 == 1
            errors = differences(found, pooling, shape, dtype, device, options)
            checked += 1
            worst = max(worst, *errors.values())
            off = {name: error for name, error in errors.items() if error > 1}
            if off:
                wrong.append({"dtype": str(dtype), "shape": shape, "options": options, **off})
        yield {
            "status": "failed" if wrong else "passed",
            "reason": f"off by more than the tolerance: {wrong[:5]}" if wrong else None,
            "pooling": pooling,
            "checked": checked,
            "worst_over_tolerance": worst,
        }


def values(setting: Setting) -> Iterator[Record]:
    """Compare the compiled kernels on twenty shapes."""
    yield from compare(operations.native(setting), setting.device, TINY if setting.dry else SHAPES)


def triton(setting: Setting) -> Iterator[Record]:
    """Compare the Triton kernels on five shapes."""
    yield from compare(operations.triton(setting), setting.device, FEW)


def smoke(setting: Setting) -> Iterator[Record]:
    """Run six small shapes through all kernels, for the sanitizers to watch."""
    shapes = TINY if setting.dry else SMOKE
    yield from compare(operations.native(setting), setting.device, shapes)
    if not setting.dry:
        yield from connections(setting, ("native",))


def connections(
    setting: Setting, backends: tuple[str, ...] = ("native", "triton")
) -> Iterator[Record]:
    """Compare values and gradients of the connection around a layer; a record for each backend."""
    cases, device = operations.support("connecting"), torch.device(setting.device)
    few = [case for case in cases.FEW if not setting.dry or case.shape[0] * case.shape[1] < 50]
    for backend in backends:
        reason = unavailable(backend, device)
        if reason is not None:
            yield {"status": "skipped", "reason": reason, "backend": backend}
            continue
        with use_backend(backend):
            kernels = connection_kernels(device)
        wrong, worst = [], 0.0
        for case in few:
            errors = cases.errors(case, *kernels, device=setting.device)
            worst = max(worst, *errors.values())
            off = {name: error for name, error in errors.items() if error > 1}
            if off:
                wrong.append({"case": str(case), **off})
        yield {
            "status": "failed" if wrong else "passed",
            "reason": f"off by more than the tolerance: {wrong[:5]}" if wrong else None,
            "backend": backend,
            "checked": len(few),
            "worst_over_tolerance": worst,
        }


# ------------------------------------------------------------------ what a CPU cannot show


def hard_cases(setting: Setting) -> Iterator[Record]:
    """Check streams, graphs, bit-equal repetition, odd addresses and large sizes."""
    found = operations.native(setting)
    many = 70 if setting.dry else 70_000
    for name, case in {
        "two runs bit-equal": _repeats,
        "side stream": _side_stream,
        "CUDA graph": _graph,
        "odd addresses": _odd_addresses,
        "batch of 70,000": functools.partial(_tail, shape=(many, 3, 2)),
        "more than 2^31 elements": functools.partial(_tail, shape=(many, 16, many // 70)),
    }.items():
        reason = case(setting, found)
        yield {"status": "failed" if reason else "passed", "reason": reason, "case": name}
        if not setting.dry:
            torch.cuda.empty_cache()


def _plain(found: Operations, gates: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return found.forward(gates, None, None, None, None, 1, 0.0, False, False, True)


def _grads(found: Operations, gates: torch.Tensor, out: Sequence[torch.Tensor]) -> torch.Tensor:
    return found.backward(out[0], None, None, gates, *[None] * 4, out[3], 1, 0.0, False)[0]


def _repeats(setting: Setting, found: Operations) -> str | None:
    shapes = [(2, 70, 8)] if setting.dry else [(4, 1000, 320), (256, 100, 640)]
    for batch, length, hidden in shapes:
        gates = torch.randn(batch, length, 3 * hidden, device=setting.device)
        bias = torch.zeros(batch, 3 * hidden, device=setting.device)
        runs = []
        for _ in range(2):
            out = found.forward(gates, bias, None, None, None, 1, 0.0, False, False, True)
            none = (None,) * 3
            back = found.backward(out[0], None, None, gates, bias, *none, out[3], 1, 0.0, False)
            runs.append((*out, *back))
        if not all(torch.equal(a, b) for a, b in zip(*runs, strict=True)):
            return f"two runs differ at {(batch, length, hidden)}"
    return None


def _side_stream(setting: Setting, found: Operations) -> str | None:
    shape = (2, 40, 12) if setting.dry else (64, 512, 960)
    gates = torch.randn(shape, device=setting.device)
    wanted = _plain(found, gates)[0]
    with operations.side_stream(setting):
        # Work that the kernel must wait for, on this stream and no other.
        late = gates * 0
        for _ in range(50):
            late = late + gates / 50
        result = _plain(found, late)[0]
    operations.synchronize(setting)
    close = torch.allclose(result, wanted, atol=1e-4)
    return None if close else "results on a side stream do not follow that stream's work"


def _graph(setting: Setting, found: Operations) -> str | None:
    shape = (2, 40, 12) if setting.dry else (8, 128, 960)
    gates = torch.randn(shape, device=setting.device)
    seed = torch.tensor(1, device=setting.device)

    def step() -> torch.Tensor:
        return found.forward(gates, None, None, None, seed, 1, 0.5, False, False, False)[0]

    captured, replay = operations.graph_of(setting, step)
    for number in (1, 2):
        seed.fill_(number)
        replay()
        if not torch.equal(captured, step()):
            return f"a replay with seed {number} differs from a call"
    return None


def _odd_addresses(setting: Setting, found: Operations) -> str | None:
    """Compare gates that begin one number behind a multiple of their vectors with their copy."""
    for dtype in (torch.float32, torch.bfloat16):
        for hidden in (7, 8):
            room = torch.randn(2, 70, 3 * hidden + 1, device=setting.device).to(dtype)
            gates = room[:, :, 1:]  # every other row begins at an odd address
            copy = gates.contiguous()
            ours, theirs = _plain(found, gates), _plain(found, copy)
            pairs = [*zip(ours, theirs, strict=True)]
            pairs.append((_grads(found, gates, ours), _grads(found, copy, theirs)))
            # Other vectors divide time otherwise: equal up to rounding.
            near = 1e-5 if dtype == torch.float32 else 2e-2
            if not all(torch.allclose(a, b, rtol=near, atol=near) for a, b in pairs):
                return f"odd addresses change results, {dtype}, {hidden} units"
    return None


def _tail(setting: Setting, found: Operations, shape: Shape) -> str | None:
    batch, length, hidden = shape
    needed = 8 * batch * length * 3 * hidden  # gates, their gradient, h, tiles and room
    if not setting.dry and torch.cuda.mem_get_info()[0] < needed:
        return f"{needed >> 30} GiB of GPU memory are not free"
    options: dict[str, Any] = {"device": setting.device, "dtype": torch.bfloat16}
    gates = torch.empty(batch, length, 3 * hidden, **options).normal_()
    out = _plain(found, gates)
    back = _grads(found, gates, out)
    rows = slice(batch - 2, batch)
    near = gates[rows].clone()
    small = _plain(found, near)
    # A small batch may take the other form: equal up to rounding.
    same = torch.allclose(out[0][rows].float(), small[0].float(), atol=2e-2)
    same &= torch.allclose(back[rows].float(), _grads(found, near, small).float(), atol=2e-2)
    return None if same else f"the last rows of {shape} differ from the same rows alone"
