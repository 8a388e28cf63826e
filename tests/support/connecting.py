"""The connection around a layer: cases for kernels of it, compared with the definition."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from hf_qrnn import use_backend
from hf_qrnn.model.connect_qrnn import connect

Tensors = dict[str, torch.Tensor | None]
Operation = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# Half a unit in the last place, and what is computed in float32 or float64.
ROUNDING = {F64: 1e-13, F32: 4e-6, BF16: 1.01 * 2**-8, F16: 1.01 * 2**-11}
SEED, EPS = 7, 1e-3
MIXES = list(itertools.product((F32, BF16, F16), repeat=3))


class Case(NamedTuple):
    """Dtypes: None where there is no such tensor."""

    shape: tuple[int, int, int]
    h: torch.dtype = F32
    residual: torch.dtype | None = F32
    weight: torch.dtype | None = F32
    normed: torch.dtype = F32
    dropout: float = 0.3
    grads: tuple[str, ...] = ("out", "normed")
    wanted: tuple[str, ...] = ("h", "residual")

    @property
    def out(self) -> torch.dtype:
        return self.h if self.residual is None else self.residual


def name_of(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def draw(case: Case) -> Tensors:
    generator = torch.Generator().manual_seed(3)

    def normal(dtype: torch.dtype | None, *shape: int) -> torch.Tensor | None:
        x = torch.randn(shape, generator=generator, dtype=F64)
        return None if dtype is None else x.to(dtype)

    return {
        "h": normal(case.h, *case.shape),
        "residual": normal(case.residual, *case.shape),
        "weight": normal(case.weight, case.shape[2]),
        "grad_out": normal(case.out, *case.shape) if "out" in case.grads else None,
        "grad_normed": normal(case.normed, *case.shape)
        if "normed" in case.grads and case.weight is not None
        else None,
    }


def exact(case: Case, given: Tensors, kept: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute values and gradients of the definition in float64; `kept` is `out` in memory."""
    leaves = {
        name: x.double().requires_grad_()
        for name in ("h", "residual", "weight")
        if (x := given[name]) is not None
    }
    seed = torch.tensor(SEED) if case.dropout else None
    with use_backend("torch"):
        out = connect(leaves["h"], leaves.get("residual"), dropout=case.dropout, seed=seed).out
        named = {"out": out}
        if case.weight is not None:
            # The norm is of what is in memory, with its digits.
            rounded = kept.double() + (out - out.detach())
            normed = connect(rounded, None, leaves["weight"], eps=EPS).normed
            assert normed is not None
            named["normed"] = normed
    received = {name: g.double() for name in named if (g := given[f"grad_{name}"]) is not None}
    found = torch.autograd.grad(
        [named[name] for name in received], list(leaves.values()), list(received.values()),
        allow_unused=True,
    )  # fmt: skip
    values = {name: x.detach() for name, x in named.items()}
    grads = {f"grad_{n}": g for n, g in zip(leaves, found, strict=True) if g is not None}
    return values | grads


def run(
    case: Case, given: Tensors, forward: Operation, backward: Operation, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Call both operations on a device; what they leave empty is not among the results."""
    given = {name: None if x is None else x.to(device) for name, x in given.items()}
    seed = torch.tensor(SEED, device=device) if case.dropout else None
    causes = [given[name] for name in ("h", "residual", "weight")]
    out, normed, inverse = forward(*causes, seed, case.dropout, EPS, name_of(case.normed))
    kept = out if out.dim() == 3 else given["h"]
    dtypes = [
        name_of(dtype) if name in case.wanted and dtype is not None else ""
        for name, dtype in (("h", case.h), ("residual", case.residual))
    ]
    grads = (given["grad_out"], given["grad_normed"])
    back = backward(*grads, kept, given["weight"], inverse, seed, case.dropout, *dtypes)
    names = ["out", "normed", "grad_h", "grad_residual", "grad_weight"]
    results = zip(names, (out, normed, *back), strict=True)
    return {name: x.cpu() for name, x in results if x.shape != (0,)}


def errors(
    case: Case,
    forward: Operation,
    backward: Operation,
    rounding: dict[torch.dtype, float] = ROUNDING,
    device: str = "cpu",
) -> dict[str, float]:
    """Compare values and gradients with the definition's in float64: errors over tolerances."""
    given = draw(case)
    found = run(case, given, forward, backward, device)
    kept = found.get("out", given["h"])
    assert kept is not None
    wanted = exact(case, given, kept)
    state = F64 if case.h == F64 else F32
    dtypes: dict[str, Any] = {
        "out": case.out, "normed": case.normed, "grad_h": case.h, "grad_residual": case.residual,
        "grad_weight": state,
    }  # fmt: skip
    if case.residual is None and not case.dropout:
        wanted.pop("out")  # it is h itself
    expected = set(wanted) - {f"grad_{n}" for n in ("h", "residual") if n not in case.wanted}
    assert set(found) == expected
    over = {}
    for name, x in found.items():
        assert x.dtype == dtypes[name], name
        error = (x.double() - wanted[name]).abs() / wanted[name].abs().clamp(min=1)
        tolerance = rounding[x.dtype]
        if name == "grad_weight":
            tolerance *= max(1, case.shape[0] * case.shape[1]) ** 0.5
        # What is not written is NaN, which must not pass for small.
        over[name] = float(error.nan_to_num(nan=float("inf")).max()) / tolerance
    return over


def check(
    case: Case,
    forward: Operation,
    backward: Operation,
    rounding: dict[torch.dtype, float] = ROUNDING,
) -> None:
    over = errors(case, forward, backward, rounding)
    assert max(over.values()) <= 1, over


# One of everything, for a device where each mix of dtypes is compiled first: rows of a warp, of a
# block and wider; more rows than blocks; odd channels; parts that are missing.
FEW = [
    Case((3, 7, 5), *[F64] * 4),
    Case((4, 50, 640), BF16, F32, F32, BF16, 0.1),
    Case((40, 50, 256), BF16, BF16, BF16, BF16),
    Case((2, 9, 1501), F16, F32, F32, F16, 0.3),
    Case((1, 3, 10_000), F32, None, F32, F32, 0.0),
    Case((70, 3, 12), F32, F32, None, F32, 1.0),
]


def assert_same(results: Sequence[dict[str, torch.Tensor]]) -> None:
    """Compare two results to the bit."""
    for name, x in results[0].items():
        assert torch.equal(x, results[1][name]), name
