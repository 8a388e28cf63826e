"""The connection's Triton kernels in the interpreter; test_triton.py runs this file with it on."""

import connecting
import pytest
import torch
from connecting import BF16, EPS, F16, F32, F64, MIXES, SEED, Case, assert_same, draw

from hf_qrnn.model import backends_qrnn, triton_connect_qrnn
from hf_qrnn.model.backends_qrnn import VARIABLE, use_backend
from hf_qrnn.model.connect_qrnn import connect, dropout_keep
from hf_qrnn.model.triton_connect_qrnn import connect_backward, connect_forward

pytestmark = pytest.mark.usefixtures("nan_memory")

# The interpreter cuts off where a GPU rounds.
ROUNDING = {F64: 1e-13, F32: 4e-6, BF16: 1.01 * 2**-7, F16: 1.01 * 2**-10}


@pytest.fixture(scope="module", autouse=True)
def _quick_interpreter() -> None:
    """Patch Triton's language once, and not at every call of a device function."""
    for name, function in list(vars(triton_connect_qrnn).items()):
        if hasattr(function, "rewrite") and not name.endswith("_kernel"):
            setattr(triton_connect_qrnn, name, function.rewrite())


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several runs, and more rows than programs."""
    monkeypatch.setattr(triton_connect_qrnn, "_WIDEST", 8)
    monkeypatch.setattr(triton_connect_qrnn, "_PROGRAMS", 2)


def check(case: Case) -> None:
    connecting.check(case, connect_forward, connect_backward, ROUNDING)


@pytest.mark.parametrize(("h", "residual", "normed"), MIXES, ids=str)
def test_any_mix_of_dtypes_is_the_definition(
    h: torch.dtype, residual: torch.dtype, normed: torch.dtype
) -> None:
    check(Case((1, 2, 12), h, residual, h if normed == F32 else F32, normed))


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("hidden", [1, 7, 33])
def test_any_width_is_the_definition(hidden: int, dtype: torch.dtype) -> None:
    check(Case((2, 2, hidden), dtype, dtype, dtype, dtype))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("hidden", [32, 33, 70])
@pytest.mark.parametrize("residual", [F32, None], ids=str)
def test_wide_rows_and_many_are_the_definition(residual: torch.dtype | None, hidden: int) -> None:
    check(Case((2, 3, hidden), residual=residual, dropout=0.3))
    check(Case((1, 5, hidden), residual=residual, dropout=0.0))
    check(Case((1, 5, hidden), residual=residual, weight=None))


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("residual", [F32, None], ids=str)
@pytest.mark.parametrize("weight", [F32, None], ids=str)
def test_every_part_may_be_missing(
    weight: torch.dtype | None, residual: torch.dtype | None, dropout: float
) -> None:
    if weight is residual is None and dropout == 0:
        return  # nothing is left to do
    check(Case((1, 3, 9), residual=residual, weight=weight, dropout=dropout))


@pytest.mark.parametrize("grads", [("out",), ("normed",)], ids=str)
@pytest.mark.parametrize("wanted", [("h",), ("residual",), ()], ids=str)
def test_gradients_are_optional(grads: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    check(Case((1, 3, 8), h=BF16, grads=grads, wanted=wanted))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty_shapes(shape: tuple[int, int, int]) -> None:
    case = Case(shape)
    found = connecting.run(case, draw(case), connect_forward, connect_backward)
    assert found["out"].shape == found["grad_h"].shape == shape
    if shape[2]:
        assert torch.equal(found["grad_weight"], torch.zeros(shape[2]))


@pytest.mark.parametrize("seed", [0, -3, 2**63 - 1])
def test_dropout_bits_are_those_of_the_definition(seed: int) -> None:
    number = torch.tensor(seed)
    h = torch.full((2, 3, 21), float("nan"))
    out, *_ = connect_forward(h, None, None, number, 0.4, EPS, "float32")
    keep = dropout_keep(number, 2, 3, 21, 0.4)
    assert torch.equal(out.isnan(), keep)
    assert (out[~keep] == 0).all()
    assert keep.any()
    assert not keep.all()


def test_other_strides_and_another_run_give_the_same_bits() -> None:
    case = Case((2, 3, 8), h=BF16, normed=BF16)
    given = draw(case)
    apart = {n: torch.stack([x, x], dim=-1)[..., 0] for n, x in given.items() if x is not None}
    results = [
        connecting.run(case, x, connect_forward, connect_backward) for x in (given, given, apart)
    ]
    assert_same(results[:2])
    assert_same(results[1:])


def test_connect_runs_on_these_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    backends_qrnn._connection.cache_clear()
    generator = torch.Generator().manual_seed(0)
    h, residual, weight = (
        torch.randn(*shape, generator=generator, dtype=F64).requires_grad_()
        for shape in ((2, 3, 5), (2, 3, 5), (5,))
    )
    results = []
    calls: list[str] = []
    backward = triton_connect_qrnn.connect_backward

    def watched(*arguments: object) -> object:
        calls.append("backward")
        return backward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(triton_connect_qrnn, "connect_backward", watched)
    for backend in ("triton", "torch"):
        with use_backend(backend):
            found = connect(h, residual, weight, dropout=0.4, seed=torch.tensor(SEED))
            assert found.normed is not None
            total = found.out.square().sum() + found.normed.sin().sum()
            grads = torch.autograd.grad(total, (h, residual, weight))
            results.append([found.out, found.normed, *grads])
    assert calls == ["backward"]
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)
