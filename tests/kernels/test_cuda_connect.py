"""The connection's CUDA kernels: their own source, run on the CPU by a thread per CUDA thread."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from cuda_emulation import missing_tool

from hf_qrnn.model.connect_qrnn import connect, dropout_keep

pytestmark = [
    pytest.mark.skipif(missing_tool("g++") is not None, reason=str(missing_tool("g++"))),
    pytest.mark.usefixtures("emulated", "nan_memory"),
]

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# Half a unit in the last place, and what is computed in float32 or float64.
ROUNDING = {F64: 1e-13, F32: 4e-6, BF16: 1.01 * 2**-8, F16: 1.01 * 2**-11}
SEED, EPS = 7, 1e-3


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


def draw(case: Case) -> dict[str, torch.Tensor | None]:
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


def exact(case: Case, given: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Compute values and gradients of the definition in float64."""
    leaves = {
        name: x.double().requires_grad_()
        for name in ("h", "residual", "weight")
        if (x := given[name]) is not None
    }
    # What the kernel is asked for though nothing changes h, connect gives as it is.
    seed = torch.tensor(SEED) if case.dropout else None
    results = connect(
        leaves["h"], leaves.get("residual"), leaves.get("weight"),
        dropout=case.dropout, seed=seed, eps=EPS,
    )  # fmt: skip
    named = {"out": results.out, "normed": results.normed}
    received = {name: g.double() for name in named if (g := given[f"grad_{name}"]) is not None}
    found = torch.autograd.grad(
        [named[name] for name in received], list(leaves.values()), list(received.values()),
        allow_unused=True,
    )  # fmt: skip
    values = {name: x.detach() for name, x in named.items() if x is not None}
    grads = {f"grad_{n}": g for n, g in zip(leaves, found, strict=True) if g is not None}
    return values | grads


def kernels(case: Case, given: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Call both operations; what they leave empty is not among the results."""
    ops = torch.ops.hf_qrnn_emulated
    seed = torch.tensor(SEED) if case.dropout else None
    causes = [given[name] for name in ("h", "residual", "weight")]
    out, normed, inverse = ops.connect_forward(
        *causes, seed, case.dropout, EPS, name_of(case.normed)
    )
    kept = out if out.dim() == 3 else given["h"]
    dtypes = [
        name_of(dtype) if name in case.wanted and dtype is not None else ""
        for name, dtype in (("h", case.h), ("residual", case.residual))
    ]
    back = ops.connect_backward(
        given["grad_out"], given["grad_normed"], kept, given["weight"], inverse, seed,
        case.dropout, *dtypes,
    )  # fmt: skip
    names = ["out", "normed", "grad_h", "grad_residual", "grad_weight"]
    results = zip(names, (out, normed, *back), strict=True)
    return {name: x for name, x in results if x.shape != (0,)}


def check(case: Case, given: dict[str, torch.Tensor | None] | None = None) -> None:
    given = draw(case) if given is None else given
    found, wanted = kernels(case, given), exact(case, given)
    state = F64 if case.h == F64 else F32
    # The norm is of `out` as it was rounded, which its derivative sees.
    coarse = ROUNDING[case.out] if case.out in (BF16, F16) else 0.0
    dtypes: dict[str, Any] = {
        "out": case.out, "normed": case.normed, "grad_h": case.h, "grad_residual": case.residual,
        "grad_weight": state,
    }  # fmt: skip
    if case.residual is None and not case.dropout:
        wanted.pop("out")  # it is h itself
    expected = set(wanted) - {f"grad_{n}" for n in ("h", "residual") if n not in case.wanted}
    assert set(found) == expected
    for name, x in found.items():
        assert x.dtype == dtypes[name], name
        error = (x.double() - wanted[name]).abs() / wanted[name].abs().clamp(min=1)
        assert not error.isnan().any(), f"{name} is not wholly written"
        tolerance = ROUNDING[x.dtype] + (2 * coarse if name != "out" else 0.0)
        if name == "grad_weight":
            tolerance *= max(1, case.shape[0] * case.shape[1]) ** 0.5
        assert error.max() <= tolerance, f"{name}: {float(error.max()):.2e} > {tolerance:.2e}"


# ------------------------------------------------------------------ against the definition


@pytest.mark.parametrize(
    ("h", "residual", "normed"), list(itertools.product((F32, BF16, F16), repeat=3)), ids=str
)
def test_any_mix_of_dtypes_is_the_definition(
    h: torch.dtype, residual: torch.dtype, normed: torch.dtype
) -> None:
    check(Case((1, 3, 12), h, residual, h if normed == F32 else F32, normed))


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("hidden", [1, 3, 4, 7, 130, 1028])
def test_any_width_is_the_definition(hidden: int, dtype: torch.dtype) -> None:
    # Odd ones are read one by one, those of fours by vectors; 1028 is a block's row.
    check(Case((2, 2, hidden), dtype, dtype, dtype, dtype))


@pytest.mark.parametrize("hidden", [4097, 4100])
@pytest.mark.parametrize("residual", [F32, None], ids=str)
def test_a_row_wider_than_registers_is_the_definition(
    residual: torch.dtype | None, hidden: int
) -> None:
    check(Case((1, 3, hidden), residual=residual, dropout=0.3 if residual else 0.0))


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("residual", [F32, None], ids=str)
@pytest.mark.parametrize("weight", [F32, None], ids=str)
def test_every_part_may_be_missing(
    weight: torch.dtype | None, residual: torch.dtype | None, dropout: float
) -> None:
    if weight is residual is None and dropout == 0:
        return  # nothing is left to do
    check(Case((2, 3, 9), residual=residual, weight=weight, dropout=dropout))


@pytest.mark.parametrize("grads", [("out",), ("normed",)], ids=str)
@pytest.mark.parametrize("wanted", [("h",), ("residual",), ()], ids=str)
def test_gradients_are_optional(grads: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    check(Case((2, 5, 8), h=BF16, grads=grads, wanted=wanted))


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 11, 1100), (1, 5, 4100)], ids=str)
def test_weight_gradient_over_more_rows_than_blocks(shape: tuple[int, int, int]) -> None:
    # Three blocks in this build: of four rows each and more, of a row each, of a row in two runs.
    check(Case(shape, dropout=0.0, wanted=("h",)))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty_shapes(shape: tuple[int, int, int]) -> None:
    case = Case(shape)
    found = kernels(case, draw(case))
    assert found["out"].shape == found["grad_h"].shape == shape
    if shape[2]:
        assert torch.equal(found["grad_weight"], torch.zeros(shape[2]))


# ------------------------------------------------------------------ promises


@pytest.mark.parametrize("seed", [0, -3, 2**63 - 1])
def test_dropout_bits_are_those_of_the_definition(seed: int) -> None:
    h = torch.ones(2, 3, 21)
    number = torch.tensor(seed)
    out, *_ = torch.ops.hf_qrnn_emulated.connect_forward(h, None, None, number, 0.4, EPS, "float32")
    keep = dropout_keep(number, 2, 3, 21, 0.4)
    assert torch.equal(out != 0, keep)
    assert keep.any()
    assert not keep.all()


def test_a_dropped_number_may_be_anything() -> None:
    h = torch.full((1, 4, 40), float("nan"))
    out, *_ = torch.ops.hf_qrnn_emulated.connect_forward(
        h, None, None, torch.tensor(SEED), 0.5, EPS, "float32"
    )
    assert torch.equal(out.isnan(), dropout_keep(torch.tensor(SEED), 1, 4, 40, 0.5))


def same(results: Sequence[dict[str, torch.Tensor]]) -> None:
    for name, x in results[0].items():
        assert torch.equal(x, results[1][name]), name


@pytest.mark.parametrize("hidden", [8, 1100])
def test_two_runs_are_equal_to_the_bit(hidden: int) -> None:
    case = Case((3, 13, hidden), h=BF16)
    same([kernels(case, draw(case)) for _ in range(2)])


def test_other_strides_and_addresses_give_the_same_bits() -> None:
    case = Case((2, 5, 8), h=BF16, normed=BF16)
    given = draw(case)
    moved = {}
    for name, x in given.items():
        assert x is not None
        # One element off, where vectors do not fit; and its channels apart.
        memory = torch.zeros(x.numel() + 1, dtype=x.dtype)
        moved[name] = memory[1:].view_as(x).copy_(x)
    apart = {n: torch.stack([x, x], dim=-1)[..., 0] for n, x in given.items() if x is not None}
    for other in (moved, apart):
        same([kernels(case, given), kernels(case, other)])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"h": torch.zeros(2, 6)}, "`h` must be \\(batch, time, hidden\\), but is \\(2, 6\\)"),
        ({"residual": torch.zeros(2, 5, 5)}, "`residual` must have shape \\(2, 5, 6\\), but"),
        ({"residual": torch.zeros(2, 5, 6).double()}, "`residual` must be float64 where"),
        ({"h": torch.zeros(2, 5, 6).int()}, "numbers must be float64, float32"),
        ({"weight": torch.zeros(5)}, "`weight` must have shape \\(6\\), but has \\(5\\)"),
        ({"seed": torch.zeros(1).long()}, "`seed` must have shape \\(\\), but has \\(1\\)"),
        ({"seed": torch.tensor(1).int()}, "`seed` must be int64"),
        ({"dropout": 1.5}, "`dropout` must be in \\[0, 1\\], but is 1.5"),
        ({"normed_dtype": "float64"}, "results must be float64 where the tensors are"),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = {"h": torch.zeros(2, 5, 6), "residual": None, "seed": None}
    given |= {"weight": torch.zeros(6), "dropout": 0.5, "eps": EPS, "normed_dtype": "float32"}
    with pytest.raises(RuntimeError, match=text):
        torch.ops.hf_qrnn_emulated.connect_forward(**{**given, **changes})


def test_a_backward_pass_without_a_gradient_is_refused() -> None:
    out = torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match="a gradient must be given"):
        torch.ops.hf_qrnn_emulated.connect_backward(None, None, out, *[None] * 3, 0.0, "", "")
