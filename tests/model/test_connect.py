"""hf_qrnn.model.connect_qrnn: `connect` is residual, dropout and RMSNorm, with every backend."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backend_runs import CPU, all_backends, compiled
from connect_loop import GOLDEN, Case, connect_loop, keeps
from pooling_loop import in_double, largest_difference, split_mix, weighted

from hf_qrnn import use_backend
from hf_qrnn.model import backends_qrnn
from hf_qrnn.model.backends_qrnn import ConnectionKernels, connection_kernels, unavailable
from hf_qrnn.model.connect_qrnn import Connected, connect, dropout_keep

pytestmark = pytest.mark.usefixtures("nan_memory")

# "native" once for every instruction set of its kernels.
SEED = 7

# Half a unit in the last place, relative to the largest number if that is above 1; of the wider
# types what the sums add.
ROUNDING = {
    torch.float64: 1e-14,
    torch.float32: 1e-6,
    torch.bfloat16: 1.01 * 2**-8,
    torch.float16: 1.01 * 2**-11,
}
HALVES = (torch.float32, torch.bfloat16, torch.float16)

# Around the lanes of every instruction set, and the 64 rows of a part.
CASES = (
    Case((2, 3, 7)),
    Case((1, 1, 1)),
    Case((1, 1, 64), residual=False),
    Case((3, 5, 17), dropout=0.0),
    Case((2, 33, 16), norm=False),
    Case((13, 5, 3)),
    Case((1, 65, 5), residual=False, dropout=0.0),
    Case((2, 2, 83), residual=False, norm=False),
    Case((2, 3, 33), dropout=1.0),
    Case((2, 3, 9), dropout=1e-7),
    Case((0, 3, 5)),
    Case((2, 0, 5)),
)


needs_native = pytest.mark.skipif(
    unavailable("native", CPU) is not None, reason="the library is not built"
)


def native() -> ConnectionKernels:
    with use_backend("native"):
        kernels = connection_kernels(CPU)
    assert kernels is not None
    return kernels


def leaves_of(given: dict[str, torch.Tensor | None]) -> list[torch.Tensor]:
    return [x for x in given.values() if x is not None]


def run(
    case: Case, given: dict[str, torch.Tensor | None], **options: Any
) -> tuple[Connected, list[torch.Tensor]]:
    """Results of `connect`, and gradients of a sum that reads each with a weight of its own."""
    got = connect(**given, **case.options(torch.tensor(SEED)), **options)
    loss = weighted([x for x in got if x is not None])
    return got, list(torch.autograd.grad(loss, leaves_of(given)))


@functools.cache
def expected(
    case: Case, *dtypes: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor]]:
    exact = in_double(case.given(*dtypes))
    out, normed = connect_loop(**exact, **case.options(SEED))
    loss = weighted([x for x in (out, normed) if x is not None])
    # Without a step the loop reads nothing.
    unused = 0 in case.shape
    options: dict[str, bool] = {"allow_unused": unused, "materialize_grads": unused}
    return out, normed, list(torch.autograd.grad(loss, leaves_of(exact), **options))


def assert_near(ours: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    largest = float(exact.detach().abs().max()) if exact.numel() else 0.0
    assert largest_difference(ours, exact) <= tolerance * max(1.0, largest)


def rounding(*dtypes: torch.dtype) -> float:
    return max(ROUNDING[dtype] for dtype in dtypes)


# ------------------------------------------------------------------ the definition


def test_words_are_those_published_of_splitmix64() -> None:
    # The first outputs from the state 0, as Java's SplittableRandom and its C text give them.
    assert split_mix(GOLDEN) == 0xE220A8397B1DCDAF
    assert split_mix(2 * GOLDEN % 2**64) == 0x6E789E6AA1B965F4
    assert split_mix(3 * GOLDEN % 2**64) == 0x06C45D188009454F


@pytest.mark.parametrize("probability", [0.0, 1e-7, 2**-16, 0.1, 0.3, 0.5, 1 - 2**-16, 1.0])
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, -(2**63), -5])
def test_dropout_keep_is_that_of_python_integers(seed: int, probability: float) -> None:
    for batch, length, channels in ((2, 3, 6), (1, 1, 1), (1, 2, 9), (2, 1, 4)):
        got = dropout_keep(torch.tensor(seed), batch, length, channels, probability)
        wanted = [
            [[keeps(seed, b, t, c, probability) for c in range(channels)] for t in range(length)]
            for b in range(batch)
        ]
        assert got.tolist() == wanted


@all_backends
def test_a_case_worked_by_hand(backend: str) -> None:
    # out = (2, 1) + (1, 3); mean(out^2) = 12.5; the gradient of the first of n = out r is
    # r (1 - n1 n1 / 2, -n1 n2 / 2) = r (16/25, -12/25), and the weight's is n1.
    h = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64, requires_grad=True)
    residual = torch.tensor([[[2.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    got = connect(h, residual, weight, eps=0.0)
    r = 1 / math.sqrt(12.5)
    assert got.out.tolist() == [[[3.0, 4.0]]]
    assert got.normed is not None
    assert got.normed.flatten().tolist() == pytest.approx([3 * r, 8 * r], abs=1e-15)
    grads = torch.autograd.grad(got.normed[0, 0, 0], (h, residual, weight))
    assert grads[0].flatten().tolist() == pytest.approx([0.64 * r, -0.48 * r], abs=1e-15)
    assert grads[1].equal(grads[0])
    assert grads[2].tolist() == pytest.approx([3 * r, 0.0], abs=1e-15)


@all_backends
def test_dropout_worked_by_hand(backend: str) -> None:
    # Of the draw at seed 0, row 0, step 0: its four lowest numbers of 16 bits, lowest first.
    draw = split_mix((0xE220A8397B1DCDAF + GOLDEN) % 2**64)
    numbers = [draw >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    wanted = [0.0 if number < 0x8000 else 2.0 for number in numbers]
    assert 0.0 in wanted
    assert 2.0 in wanted
    got = connect(torch.ones(1, 1, 4), dropout=0.5, seed=torch.tensor(0))
    assert got.out.flatten().tolist() == wanted
    assert got.normed is None


# ------------------------------------------------------------------ every backend and dtype


@all_backends
@pytest.mark.parametrize("dtype", ROUNDING, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backend_matches_the_loop(backend: str, case: Case, dtype: torch.dtype) -> None:
    given = case.given(dtype)
    got, grads = run(case, given)
    out, normed, wanted = expected(case, dtype)
    # Kernels round a result once, the definition also between its operations.
    assert_near(got.out, out, rounding(dtype) * (2 if backend == "torch" else 1))
    assert got.out.dtype == dtype
    assert (got.normed is None) == (normed is None)
    if got.normed is not None and normed is not None:
        assert got.normed.dtype == dtype
        assert_near(got.normed, normed, 4 * rounding(dtype))
    for ours, exact, leaf in zip(grads, wanted, leaves_of(given), strict=True):
        assert ours.dtype == dtype
        assert ours.shape == leaf.shape
        assert_near(ours, exact, 8 * rounding(dtype))


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=lambda dtype: str(dtype)[6:])
def test_every_width_is_that_of_the_definition(backend: str, dtype: torch.dtype) -> None:
    for hidden in range(1, 71):
        case = Case((2, 2, hidden), dropout=0.4)
        given = case.given(dtype)
        got, grads = run(case, given)
        with use_backend("torch"):
            wanted, wanted_grads = run(case, given)
        for ours, theirs in zip((*got, *grads), (*wanted, *wanted_grads), strict=True):
            assert ours is not None
            assert theirs is not None
            assert_near(ours, theirs.detach(), 4 * ROUNDING[dtype])


@all_backends
@pytest.mark.parametrize("of_residual", HALVES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("of_h", HALVES, ids=lambda dtype: str(dtype)[6:])
def test_dtypes_mix(backend: str, of_h: torch.dtype, of_residual: torch.dtype) -> None:
    for case in (Case((2, 3, 19)), Case((2, 3, 19), residual=False)):
        for of_weight in HALVES:
            dtypes = (of_h, of_residual, of_weight)
            out, normed, wanted = expected(case, *dtypes)
            assert normed is not None
            of_out = of_residual if case.residual else of_h
            for normed_dtype in (None, *HALVES):
                given = case.given(*dtypes)
                got, grads = run(case, given, normed_dtype=normed_dtype)
                assert got.out.dtype == of_out
                assert got.normed is not None
                assert got.normed.dtype == (normed_dtype or of_out)
                coarsest = rounding(*dtypes, got.normed.dtype)
                assert_near(got.out, out, 2 * rounding(of_h, of_out))
                assert_near(got.normed, normed, 4 * coarsest)
                for ours, exact, leaf in zip(grads, wanted, leaves_of(given), strict=True):
                    assert ours.dtype == leaf.dtype
                    assert_near(ours, exact, 8 * coarsest)


@needs_native
def test_float64_mixes_with_no_other_in_the_kernels_and_does_in_the_definition() -> None:
    case = Case((2, 3, 5))
    given = case.given(torch.float32, torch.float64, torch.float32)
    got, grads = run(case, given)
    assert got.out.dtype == torch.float64
    assert_near(got.out, expected(case, torch.float32, torch.float64, torch.float32)[0], 1e-6)
    assert [x.dtype for x in grads] == [torch.float32, torch.float64, torch.float32]
    with pytest.raises(RuntimeError, match="`residual` must be float64 where the others are"):
        native().forward(given["h"], given["residual"], None, None, 0.0, 1e-6, "float32")


# ------------------------------------------------------------------ gradients


@all_backends
@pytest.mark.parametrize("read", ["out", "normed"])
@pytest.mark.parametrize("frozen", ["", "h", "residual", "weight"])
def test_gradients_of_one_result_and_without_one_leaf(backend: str, read: str, frozen: str) -> None:
    case = Case((3, 5, 6))
    given, exact = case.given(torch.float64), in_double(case.given(torch.float64))
    if frozen:
        given[frozen] = given[frozen].detach()  # type: ignore[union-attr]
    got = connect(**given, **case.options(torch.tensor(SEED)))
    loops = dict(zip(("out", "normed"), connect_loop(**exact, **case.options(SEED)), strict=True))
    names = [name for name in given if name != frozen]
    options: dict[str, bool] = {"allow_unused": True, "materialize_grads": True}
    ours = torch.autograd.grad(
        weighted([getattr(got, read)]), [given[name] for name in names], **options
    )
    wanted = torch.autograd.grad(
        weighted([loops[read]]), [exact[name] for name in names], **options
    )
    for a, b in zip(ours, wanted, strict=True):
        assert_near(a, b, 1e-13)


@pytest.mark.parametrize("name", ["torch", "auto"])
@pytest.mark.parametrize("case", [c for c in CASES if 0 < math.prod(c.shape) < 60], ids=str)
def test_gradients_to_second_order(case: Case, name: str) -> None:
    given = case.given(torch.float64)
    names = [key for key, value in given.items() if value is not None]

    def function(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tensors: Any = dict(zip(names, leaves, strict=True))
        got = connect(**tensors, **case.options(torch.tensor(SEED)))
        return tuple(x for x in got if x is not None)

    with use_backend(name):
        assert torch.autograd.gradcheck(function, leaves_of(given))
        assert torch.autograd.gradgradcheck(function, leaves_of(given))


@needs_native
@pytest.mark.parametrize("order", [("native", "torch"), ("torch", "native")], ids="-then-".join)
def test_backward_runs_on_another_backend_than_forward(order: tuple[str, str]) -> None:
    case = Case((2, 3, 9))
    given = case.given(torch.float64)
    with use_backend(order[0]):
        got = connect(**given, **case.options(torch.tensor(SEED)))
    with use_backend(order[1]):
        grads = torch.autograd.grad(weighted(got), leaves_of(given))  # type: ignore[arg-type]
    for a, b in zip(grads, expected(case, torch.float64)[2], strict=True):
        assert_near(a, b, 1e-13)


@pytest.mark.parametrize("name", ["torch", "auto"])
def test_many_gradients_at_once(name: str) -> None:
    case = Case((2, 3, 5))
    given = case.given(torch.float64)
    leaves = leaves_of(given)
    with use_backend(name):
        got = connect(**given, **case.options(torch.tensor(SEED)))
        cotangents = [torch.randn(4, *case.shape, dtype=torch.float64) for _ in got]
        options: dict[str, bool] = {"retain_graph": True}
        batched = torch.autograd.grad(got, leaves, cotangents, is_grads_batched=True, **options)
        for i in range(4):
            one = torch.autograd.grad(got, leaves, [x[i] for x in cotangents], **options)
            torch.testing.assert_close([x[i] for x in batched], list(one), rtol=0, atol=1e-13)


@all_backends
def test_views_are_read_and_nothing_is_written(backend: str) -> None:
    case = Case((3, 4, 6))
    h, residual, weight = (x.detach() for x in leaves_of(case.given(torch.float32)))
    views = (
        h.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([residual, residual], -1)[..., 1],
        torch.stack([weight, weight])[:, ::1].t()[:, 0],
    )
    before = [x.clone() for x in views]
    results = []
    for tensors in ((h, residual, weight), views):
        leaves = [x.requires_grad_() for x in tensors]
        got = connect(*leaves, **case.options(torch.tensor(SEED)))
        assert got.normed is not None
        # Gradients that are expanded, and turned.
        total = got.out.sum() + (got.normed.transpose(0, 1) * 2.5).sum()
        results.append([*got, *torch.autograd.grad(total, leaves)])
    for a, b in zip(*results, strict=True):
        assert a.equal(b)
    assert all(a.equal(b) for a, b in zip(views, before, strict=True))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_threads_and_repetition_change_no_bit(backend: str, dtype: torch.dtype) -> None:
    case = Case((5, 70, 41))  # 350 rows: six parts
    given = case.given(dtype)
    first = run(case, given)
    others = [run(case, given)]
    try:
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            others.append(run(case, given))
    finally:
        torch.set_num_threads(1)
    for got, grads in others:
        for a, b in zip((*got, *grads), (*first[0], *first[1]), strict=True):
            assert a is not None
            assert torch.equal(a, b)  # type: ignore[arg-type]


# ------------------------------------------------------------------ bits


@all_backends
def test_a_pad_or_a_row_more_changes_no_bit_elsewhere(backend: str) -> None:
    case = Case((2, 3, 11))
    given = case.given(torch.float32)
    small, small_grads = run(case, given)
    large = Case((5, 9, 11))
    wide = large.given(torch.float32)
    for name in ("h", "residual"):
        wide[name].data[:2, :3] = given[name].data  # type: ignore[union-attr]
    wide["weight"].data.copy_(given["weight"])  # type: ignore[union-attr, arg-type]
    got = connect(**wide, **large.options(torch.tensor(SEED)))
    part = Connected(*(x[:2, :3] for x in got if x is not None))
    grads = torch.autograd.grad(weighted(part), leaves_of(wide))  # type: ignore[arg-type]
    for ours, alone in zip(part, small, strict=True):
        assert ours is not None
        assert alone is not None
        assert ours.equal(alone)
    for ours, alone in zip(grads[:2], small_grads[:2], strict=True):
        assert ours[:2, :3].equal(alone)
        assert not ours[2:].any()
        assert not ours[:, 3:].any()


@pytest.mark.parametrize("dtype", ROUNDING, ids=lambda dtype: str(dtype)[6:])
def test_the_same_seed_drops_the_same_everywhere(dtype: torch.dtype) -> None:
    dropped = ~dropout_keep(torch.tensor(SEED), 3, 5, 37, 0.3)
    isas = ("baseline", "avx2", "avx512")
    for name in ("torch", *isas):
        if name in isas:
            try:
                torch.ops.hf_qrnn_kernels.simd(name)
            except (AttributeError, RuntimeError):
                continue
        with use_backend("torch" if name == "torch" else "auto"):
            h = torch.ones(3, 5, 37, dtype=dtype, requires_grad=True)
            out = connect(h, dropout=0.3, seed=torch.tensor(SEED)).out
            (grad,) = torch.autograd.grad(out.sum(), h)
        assert (out == 0).equal(dropped), name
        assert (grad == 0).equal(dropped), name
        assert grad.equal(out.detach()), name
    if name != "torch" and unavailable("native", CPU) is None:
        torch.ops.hf_qrnn_kernels.simd("best")


def test_a_seed_is_drawn_from_torchs_generator() -> None:
    h = torch.ones(2, 3, 40)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append([connect(h, dropout=0.5).out for _ in range(2)])
    assert results[0][0].equal(results[1][0])
    assert results[0][1].equal(results[1][1])
    assert not results[0][0].equal(results[0][1])
    assert not results[0][0].equal(results[2][0])


@pytest.mark.parametrize("options", [{}, {"dropout": 0.0}], ids=["", "zero"])
def test_nothing_is_drawn_without_dropout(options: dict[str, float]) -> None:
    before = torch.get_rng_state()
    h = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert connect(h, **options).out is h
    connect(h, h, torch.ones(4), **options)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
def test_zeros_are_as_many_as_asked_for_and_neighbours_independent(probability: float) -> None:
    count = 64 * 32 * 128
    keep = torch.stack(
        [dropout_keep(torch.tensor(seed), 64, 32, 128, probability) for seed in range(4)]
    )
    share = 1 - keep.double().mean(dim=(1, 2, 3))
    deviation = math.sqrt(probability * (1 - probability) / count)
    # In steps of 2^-16, and five standard deviations.
    assert ((share - probability).abs() < 2**-17 + 5 * deviation).all()
    centred = keep.double() - keep.double().mean()
    variance = probability * (1 - probability)
    for dim in range(4):
        # The next seed, row, step and channel; and those of the next draw, and of the next 16.
        for distance in (1, 4, 16) if dim == 3 else (1,):
            a, b = centred.narrow(dim, 0, keep.shape[dim] - distance), centred.roll(-distance, dim)
            b = b.narrow(dim, 0, keep.shape[dim] - distance)
            correlation = float((a * b).mean()) / variance
            assert abs(correlation) < 5 / math.sqrt(a.numel()), (dim, distance)


@all_backends
def test_the_mean_is_kept(backend: str) -> None:
    h = torch.full((64, 64, 128), 3.0)
    for probability in (0.1, 0.7):
        mean = connect(h, dropout=probability, seed=torch.tensor(SEED)).out.double().mean()
        spread = 3 * math.sqrt(probability / (1 - probability) / h.numel())
        assert abs(float(mean) - 3) < 5 * spread
    # What is kept is divided by the share of numbers that are, rounded to steps of 2^-16.
    out = connect(h, dropout=0.1, seed=torch.tensor(SEED)).out
    assert out.max() == pytest.approx(3 * 2**16 / (2**16 - 6554), rel=1e-6)
    assert not connect(h, dropout=1.0, seed=torch.tensor(SEED)).out.any()


@all_backends
def test_what_is_no_number_is_dropped_or_stays(backend: str) -> None:
    keep = dropout_keep(torch.tensor(SEED), 1, 2, 20, 0.5)
    for value in (torch.inf, -torch.inf, torch.nan):
        for probability in (0.5, 1.0):
            h = torch.full((1, 2, 20), value, requires_grad=True)
            out = connect(h, dropout=probability, seed=torch.tensor(SEED)).out
            kept = keep if probability < 1 else torch.zeros_like(keep)
            assert (out[~kept] == 0).all()
            torch.testing.assert_close(out[kept], h[kept], equal_nan=True)


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"h": torch.ones(2, 5)}, r"`h` must be floating point \(batch, time, hidden\), but is"),
        ({"h": torch.ones(2, 3, 5).long()}, r"`h` must be .*, but is torch.int64 \(2, 3, 5\)"),
        ({"residual": torch.ones(2, 3, 4)}, r"`residual` must have shape \(2, 3, 5\), but has"),
        ({"residual": torch.ones(1, 3, 5)}, r"`residual` must have shape .* \(1, 3, 5\)\."),
        ({"weight": torch.ones(1)}, r"`weight` must have shape \(5,\), but has \(1,\)\."),
        ({"dropout": 1.5}, r"`dropout` must be in \[0, 1\], but is 1.5\."),
        ({"dropout": -0.1}, r"`dropout` must be in \[0, 1\], but is -0.1\."),
        ({"dropout": math.nan}, r"`dropout` must be in \[0, 1\], but is nan\."),
    ],
)
def test_bad_arguments_get_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"h": torch.ones(2, 3, 5), "residual": torch.ones(2, 3, 5)}
    given["weight"] = torch.ones(5)
    with pytest.raises(ValueError, match=sentence) as caught:
        connect(**{**given, **changes})
    assert "\n" not in str(caught.value)


FORWARD = (torch.ones(2, 3, 5), torch.ones(2, 3, 5), torch.ones(5), torch.tensor(1), 0.5, 1e-6)


@needs_native
@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (0, torch.ones(2, 5), "`h` must be (batch, time, hidden)"),
        (1, torch.ones(2, 3, 4), "`residual` has the wrong shape"),
        (1, torch.ones(2, 3, 5).int(), "must be float64, float32, float16 or bfloat16"),
        (2, torch.ones(4), "`weight` has the wrong shape"),
        (3, torch.tensor(1.0), "`seed` has the wrong dtype"),
        (3, torch.tensor([1]), "`seed` has the wrong shape"),
        (4, 1.5, "`dropout` must be in [0, 1], but is 1.5"),
        (6, "int8", "a result must have a floating dtype, but is asked for in int8"),
    ],
)
def test_kernels_check_what_they_get(place: int, value: Any, sentence: str) -> None:
    kernels = native()
    arguments: list[Any] = [*FORWARD, "float32"]
    kernels.forward(*arguments)
    arguments[place] = value
    with pytest.raises(RuntimeError) as caught:
        kernels.forward(*arguments)
    assert sentence in str(caught.value)


@needs_native
def test_schemas_of_the_kernels_are_true() -> None:
    for name, arguments in (
        ("connect_forward", (*FORWARD, "float32")),
        (
            "connect_backward",
            (FORWARD[0], FORWARD[0], FORWARD[1], FORWARD[2], torch.ones(2, 3), FORWARD[3], 0.5)
            + ("float32", "bfloat16"),
        ),
    ):
        operation = getattr(torch.ops.hf_qrnn_kernels, name).default
        torch.library.opcheck(operation, arguments, test_utils="test_schema")


def test_the_backend_is_that_of_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    with use_backend("torch"):
        assert connection_kernels(CPU) is None
    assert connection_kernels(torch.device("meta")) is None
    monkeypatch.setenv("HF_QRNN_BACKEND", "fast")
    with pytest.raises(ValueError, match="`HF_QRNN_BACKEND` must be one of"):
        connection_kernels(CPU)


class OfAnotherRelease:
    """A library that can pool and no more."""

    def unavailable(self, device: torch.device) -> None:
        return None

    def operation(self, name: str) -> Callable[..., Any]:
        raise AttributeError(name)


def test_a_library_without_the_operation_leaves_the_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case((2, 3, 5))
    backends_qrnn._connection.cache_clear()
    monkeypatch.setattr(backends_qrnn, "_kernels", OfAnotherRelease)
    try:
        assert connection_kernels(CPU) is None
        got, _ = run(case, case.given(torch.float64))
    finally:
        backends_qrnn._connection.cache_clear()
    assert_near(got.out, expected(case, torch.float64)[0], 1e-14)
