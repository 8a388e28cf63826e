"""The connection's CUDA kernels: their own source, run on the CPU by a thread per CUDA thread."""

from typing import Any

import connecting
import pytest
import torch
from connecting import BF16, EPS, F16, F32, F64, MIXES, SEED, Case, assert_same, draw
from cuda_emulation import missing_tool

from hf_qrnn.model.connect_qrnn import dropout_keep

pytestmark = [
    pytest.mark.skipif(missing_tool("g++") is not None, reason=str(missing_tool("g++"))),
    pytest.mark.usefixtures("emulated", "nan_memory"),
]


def kernels(case: Case, given: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    ops = torch.ops.hf_qrnn_emulated
    return connecting.run(case, given, ops.connect_forward, ops.connect_backward)


def check(case: Case) -> None:
    ops = torch.ops.hf_qrnn_emulated
    connecting.check(case, ops.connect_forward, ops.connect_backward)


# ------------------------------------------------------------------ against the definition


@pytest.mark.parametrize(("h", "residual", "normed"), MIXES, ids=str)
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


@pytest.mark.parametrize("hidden", [8, 1100])
def test_two_runs_are_equal_to_the_bit(hidden: int) -> None:
    case = Case((3, 13, hidden), h=BF16)
    assert_same([kernels(case, draw(case)) for _ in range(2)])


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
        assert_same([kernels(case, given), kernels(case, other)])


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
