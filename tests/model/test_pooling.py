"""hf_qrnn.model.pooling_qrnn: `pool` is Eqs. 3 to 6, with gradients, and one node to a compiler."""

import functools
import importlib
import itertools
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from pooling_loop import gradients, in_double, inputs, keeps, largest_difference, loop, weighted
from torch._dynamo.backends.common import aot_autograd

from hf_qrnn import use_backend
from hf_qrnn.model import pooling_qrnn
from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS
from hf_qrnn.model.pooling_qrnn import NUM_GATES, PoolOutput, zoneout_keep

pytestmark = pytest.mark.usefixtures("nan_memory")

KINDS = tuple(POOL_KINDS)
pool = functools.partial(pooling_qrnn.pool, return_c=True)
FORWARD = torch.ops.hf_qrnn.pool_v2.default
BACKWARD = torch.ops.hf_qrnn.pool_backward_v2.default

# Largest difference from the loop in float64 on the same, already rounded, inputs: of h and the
# gradients, which have the inputs' dtype, and of c and the state, which are never below float32.
# Relative to the largest number there if that is above 1.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (1.01 * 2**-8, 1e-5),  # one rounding: half a unit in the last place
    torch.float16: (1.01 * 2**-11, 1e-5),
}
MASKS = {
    "no_mask": None,
    "left_padded": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
    "right_padded": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
    "empty_row": [[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]],
}
B, T, H = 3, 5, 3


def tensor_mask(name: str) -> torch.Tensor | None:
    rows = MASKS[name]
    return None if rows is None else torch.tensor(rows).bool()


# ------------------------------------------------------------------ values and gradients


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("zoneout", [0.0, 0.4], ids=["", "zoneout"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("initial_state", [False, True], ids=["", "initial_state"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("pooling", KINDS)
def test_pool_and_its_gradients_match_the_loop(
    pooling: str, bias: bool, initial_state: bool, mask: str, zoneout: float, reverse: bool
) -> None:
    given = inputs(pooling, bias=bias, initial_state=initial_state)
    options = {"pooling": pooling, "zoneout": zoneout, "reverse": reverse}
    wanted = loop(**given, mask=MASKS[mask], seed=7, **options)
    got = pool(**given, mask=tensor_mask(mask), seed=torch.tensor(7), **options)
    for ours, loops in zip(got, wanted, strict=True):
        assert largest_difference(ours, loops) <= 1e-12
    pairs = zip(gradients(got, given), gradients(wanted, given), strict=True)
    for ours, loops in pairs:
        assert largest_difference(ours, loops) <= 1e-12
    rows = MASKS[mask]
    if rows is not None:
        pads = ~torch.tensor(rows).bool()
        assert (got.h[pads] == 0).all()
        assert (gradients(pool(**given, mask=~pads, **options), given)[0][pads] == 0).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mask", ["no_mask", "empty_row"])
@pytest.mark.parametrize("pooling", KINDS)
def test_pool_keeps_its_tolerance_in_every_dtype(
    pooling: str, mask: str, dtype: torch.dtype
) -> None:
    given = inputs(pooling, dtype=dtype)
    exact = in_double(given)
    wanted = loop(**exact, pooling=pooling, mask=MASKS[mask])
    got = pool(**given, pooling=pooling, mask=tensor_mask(mask))
    assert got.h.dtype == dtype
    assert got.c.dtype == got.state.dtype == max(dtype, torch.float32, key=lambda d: d.itemsize)
    of_h, of_c = TOLERANCE[dtype]
    found = zip(gradients(got, given), gradients(wanted, exact), strict=True)
    pairs = [(got.c, wanted.c, of_c), (got.state, wanted.state, of_c), (got.h, wanted.h, of_h)]
    pairs += [(ours, loops, of_h) for ours, loops in found]
    for ours, loops, tolerance in pairs:
        assert largest_difference(ours, loops) <= tolerance * max(1, loops.detach().abs().max())
    assert all(ours.dtype == dtype for ours, *_ in pairs[2:])


@pytest.mark.parametrize("read", ["h", "c", "state"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("pooling", KINDS)
def test_gradient_through_one_result_alone(pooling: str, reverse: bool, read: str) -> None:
    given = inputs(pooling)
    rows = MASKS["right_padded"]
    mask = tensor_mask("right_padded")
    results = (
        pool(**given, pooling=pooling, mask=mask, reverse=reverse),
        loop(**given, pooling=pooling, mask=rows, reverse=reverse),
    )
    ours, loops = (
        torch.autograd.grad(getattr(result, read).square().sum(), list(given.values()))
        for result in results
    )
    for a, b in zip(ours, loops, strict=True):
        assert largest_difference(a, b) <= 1e-12


def test_float_bias_and_state_with_half_gates_get_gradients_in_their_own_dtype() -> None:
    given = inputs("fo", dtype=torch.bfloat16)
    for name in ("bias", "initial_state"):
        given[name] = given[name].detach().float().requires_grad_()
    found = gradients(pool(**given, pooling="fo")[1:], given)
    exact = in_double(given)
    # Through c and the state: a gradient that comes through h is rounded to half on its way.
    wanted = gradients(loop(**exact, pooling="fo")[1:], exact)
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.float32]
    for ours, loops in zip(found[1:], wanted[1:], strict=True):
        assert largest_difference(ours, loops) <= 1e-5


def test_worked_by_hand() -> None:
    # tanh(ln(3)/2) = 1/2, sigma(0) = 1/2, sigma(ln 3) = 3/4, sigma(-ln 3) = 1/4.
    n = math.log(3)
    z, f, o, i = [n / 2, -n / 2, n / 2], [0, 0, n], [0, -n, 0], [n, -n, 0]
    # z = 1/2, -1/2, 1/2; f = 1/2, 1/2, 3/4; o = 1/2, 1/4, 1/2; i = 3/4, 1/4, 1/2
    gates = torch.tensor([z, f, o, i], dtype=torch.float64).T[None]  # (1, 3, 4)
    # Eq. 3: c1 = 1/2 . 1/2 = 1/4
    #        c2 = 1/2 . 1/4 + 1/2 . -1/2 = -1/8
    #        c3 = 3/4 . -1/8 + 1/4 . 1/2 = 1/32
    c = torch.tensor([1 / 4, -1 / 8, 1 / 32], dtype=torch.float64)
    got = pool(gates[..., :2], pooling="f")
    torch.testing.assert_close(got.c[0, :, 0], c)
    torch.testing.assert_close(got.h[0, :, 0], c)
    # Eq. 4: the same c; h = o . c = 1/8, -1/32, 1/64
    got = pool(gates[..., :3], pooling="fo")
    torch.testing.assert_close(got.c[0, :, 0], c)
    torch.testing.assert_close(got.h[0, :, 0], torch.tensor([1 / 8, -1 / 32, 1 / 64]).double())
    # Eq. 5 from c0 = 1: c1 = 1/2 . 1 + 3/4 . 1/2 = 7/8
    #                    c2 = 1/2 . 7/8 + 1/4 . -1/2 = 5/16
    #                    c3 = 3/4 . 5/16 + 1/2 . 1/2 = 31/64
    got = pool(gates, pooling="ifo", initial_state=torch.ones(1, 1).double())
    torch.testing.assert_close(got.c[0, :, 0], torch.tensor([7 / 8, 5 / 16, 31 / 64]).double())
    torch.testing.assert_close(got.h[0, :, 0], torch.tensor([7 / 16, 5 / 64, 31 / 128]).double())
    assert got.state.item() == got.c[0, -1, 0].item()


def test_ifo_with_the_input_gate_tied_is_fo() -> None:
    given = inputs("fo", bias=False)
    tied = torch.cat([given["gates"], -given["gates"][..., H : 2 * H]], dim=-1)
    fo = pool(**given, pooling="fo")
    ifo = pool(tied, pooling="ifo", initial_state=given["initial_state"])
    assert all(largest_difference(a, b) <= 1e-15 for a, b in zip(fo, ifo, strict=True))
    pairs = zip(gradients(fo, given), gradients(ifo, given), strict=True)
    assert all(largest_difference(a, b) <= 1e-12 for a, b in pairs)


@pytest.mark.parametrize("pooling", ["f", "fo"])
def test_a_nearly_closed_gate_still_writes(pooling: str) -> None:
    # sigma(40) is 1 in float32, so 1 - f would write nothing: sigma(-40) = 4.2e-18 is the truth.
    gates = torch.zeros(1, 4, NUM_GATES[pooling])
    gates[..., 0], gates[..., 1] = 1.0, 40.0
    gates.requires_grad_()
    assert gates[0, 0, 1].sigmoid() == 1.0
    got = pool(gates, pooling=pooling)
    exact = loop(gates[:, :1], pooling).c
    # The loop's own 1 - f cannot do it in float64 either: sigma(-40) tanh(1) by hand.
    assert exact.item() == 0.0
    write = math.exp(-40) / (1 + math.exp(-40)) * math.tanh(1)
    for t in range(4):
        assert got.c[0, t, 0].item() == pytest.approx(write * (t + 1), rel=1e-6, abs=0)
    (grad,) = torch.autograd.grad(got.state.sum(), gates)
    for t in range(4):
        # d/dz of sigma(-40) tanh(z) is sigma(-40) (1 - tanh(1)^2), of f it is -sigma(-40) tanh(1).
        slope = write / math.tanh(1) * (1 - math.tanh(1) ** 2)
        assert grad[0, t, 0].item() == pytest.approx(slope, rel=1e-5, abs=0)
        assert grad[0, t, 1].item() == pytest.approx(-write, rel=1e-5, abs=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_state_of_a_long_row_is_not_rounded_to_half(dtype: torch.dtype) -> None:
    # f = 0.9975: in half precision a state near 1 would stop growing long before.
    gates = torch.tensor([3.0, 6.0]).expand(1, 400, 2).to(dtype)
    assert largest_difference(pool(gates, pooling="f").c, loop(gates, "f").c) <= 1e-5


# ------------------------------------------------------------------ derivatives of any order


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("zoneout", [0.0, 0.4], ids=["", "zoneout"])
@pytest.mark.parametrize("pooling", KINDS)
def test_gradcheck_and_gradgradcheck(pooling: str, zoneout: float, reverse: bool) -> None:
    given = inputs(pooling, shape=(2, 3, 1))
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()

    def function(*tensors: torch.Tensor) -> PoolOutput:
        gates, bias, initial_state = tensors
        return pool(
            gates,
            pooling=pooling,
            bias=bias,
            initial_state=initial_state,
            mask=mask,
            zoneout=zoneout,
            seed=torch.tensor(3),
            reverse=reverse,
        )

    tensors = tuple(given.values())
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_second_derivatives_match_the_loop() -> None:
    given = inputs("ifo", initial_state=False)
    wanted = [x for x in given.values() if x is not None]

    def second(output: PoolOutput) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(weighted(output), wanted, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), wanted)

    pairs = zip(
        second(pool(**given, pooling="ifo")), second(loop(**given, pooling="ifo")), strict=True
    )
    assert all(largest_difference(a, b) <= 1e-11 for a, b in pairs)


# ------------------------------------------------------------------ shapes at the edges


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "shape", [(2, 0, 3), (2, 1, 3), (2, 4, 1), (0, 4, 3), (0, 0, 1), (1, 1, 1)], ids=str
)
@pytest.mark.parametrize("pooling", KINDS)
def test_small_shapes(pooling: str, shape: tuple[int, int, int], reverse: bool) -> None:
    given = inputs(pooling, shape=shape)
    got = pool(**given, pooling=pooling, reverse=reverse)
    wanted = loop(**given, pooling=pooling, reverse=reverse)
    assert got.h.shape == got.c.shape == shape
    assert got.state.shape == (shape[0], shape[2])
    for ours, loops in zip(got, wanted, strict=True):
        assert largest_difference(ours, loops) <= 1e-12
    first = torch.autograd.grad(
        weighted(got), list(given.values()), create_graph=True, materialize_grads=True
    )
    assert [x.shape for x in first] == [x.shape for x in given.values()]
    assert not any(x.isnan().any() for x in first)
    torch.autograd.grad(sum(x.sum() for x in first), given["gates"], allow_unused=True)


def test_no_steps_leave_the_state_as_it_was() -> None:
    given = inputs("fo", shape=(2, 0, 3))
    got = pool(**given, pooling="fo")
    assert torch.equal(got.state, given["initial_state"])
    (grad,) = torch.autograd.grad(got.state.sum(), given["initial_state"])
    assert torch.equal(grad, torch.ones_like(grad))
    assert torch.equal(pool(torch.zeros(2, 0, 9), pooling="fo").state, torch.zeros(2, 3))


@pytest.mark.parametrize("layout", ["time_first", "channel_slice", "every_other_step", "expanded"])
def test_strided_gates_equal_contiguous_ones(layout: str) -> None:
    channels = 3 * H
    gates = {
        "time_first": torch.randn(T, B, channels).transpose(0, 1),
        "channel_slice": torch.randn(B, T, 2 * channels)[..., 2 : 2 + channels],
        "every_other_step": torch.randn(B, 2 * T, channels)[:, ::2],
        "expanded": torch.randn(1, T, channels).expand(B, T, channels),
    }[layout]
    assert not gates.is_contiguous()
    results = []
    for x in (gates.detach(), gates.contiguous()):
        x = x.requires_grad_()
        got = pool(x, pooling="fo")
        results.append((*got, *torch.autograd.grad(weighted(got), x)))
        results.append((*pool(x.detach(), pooling="fo"), results[-1][-1]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ------------------------------------------------------------------ zoneout


def test_zoneout_bits_are_split_mix_64() -> None:
    for seed in (0, 1, 2**62 + 12345):
        bits = zoneout_keep(torch.tensor(seed), 2, 3, 4, 0.3)
        wanted = [
            [[keeps(seed, b, t, channel, 0.3) for channel in range(4)] for t in range(3)]
            for b in range(2)
        ]
        assert bits.tolist() == wanted


def test_zoneout_rate_is_its_probability_and_bits_are_independent() -> None:
    for probability in (0.1, 0.5, 0.9):
        dropped = ~zoneout_keep(torch.tensor(11), 20, 50, 40, probability)
        # 40,000 draws have a standard deviation of at most 0.0025.
        assert dropped.double().mean().item() == pytest.approx(probability, abs=0.0125)
        for dim in range(3):
            n = dropped.shape[dim] - 1
            both = dropped.narrow(dim, 0, n) & dropped.narrow(dim, 1, n)
            assert both.double().mean().item() == pytest.approx(probability**2, abs=0.0125)


def test_zoneout_bit_depends_on_its_own_index_only() -> None:
    small = zoneout_keep(torch.tensor(5), 2, 3, 4, 0.5)
    large = zoneout_keep(torch.tensor(5), 6, 9, 7, 0.5)
    assert torch.equal(large[:2, :3, :4], small)
    given = inputs("fo", shape=(4, 6, 3))
    options = {"pooling": "fo", "zoneout": 0.5, "seed": torch.tensor(5)}
    whole = pool(**given, **options)
    rows = {name: x[:2] for name, x in given.items()}
    assert torch.equal(pool(**rows, **options).h, whole.h[:2])
    rows["gates"] = rows["gates"][:, :4]
    assert torch.equal(pool(**rows, **options).h, whole.h[:2, :4])


def test_zoneout_seed_decides_and_comes_from_torchs_generator() -> None:
    gates = torch.randn(2, 20, 6)

    def run(seed: int | None = None) -> torch.Tensor | None:
        given = None if seed is None else torch.tensor(seed)
        return pool(gates, pooling="f", zoneout=0.5, seed=given).c

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    torch.manual_seed(1)
    first, second = run(), run()
    torch.manual_seed(1)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)
    # A given seed, or no zoneout, draws nothing.
    state = torch.get_rng_state()
    run(3)
    pool(gates, pooling="f")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("pooling", KINDS)
def test_zoneout_sets_f_to_one_in_forward_and_backward_alike(pooling: str) -> None:
    given = inputs(pooling, shape=(2, 8, 5), bias=False)
    keep = zoneout_keep(torch.tensor(9), 2, 8, 5, 0.5)
    assert 0 < keep.sum() < keep.numel()
    got = pool(**given, pooling=pooling, zoneout=0.5, seed=torch.tensor(9))
    before = torch.cat([given["initial_state"][:, None], got.c[:, :-1]], dim=1)
    parts = given["gates"].chunk(NUM_GATES[pooling], dim=-1)
    if POOL_KINDS[pooling].has_input_gate:
        # Eq. 6 is about F alone: what is zoned out still receives i . z.
        carried = before + parts[-1].sigmoid() * parts[0].tanh()
        torch.testing.assert_close(got.c[~keep], carried[~keep])
    else:
        assert torch.equal(got.c[~keep], before[~keep])
        # No rescaling: where f is left alone it is sigma itself.
        f = parts[1].sigmoid()
        torch.testing.assert_close(got.c[keep], (f * before + (1 - f) * parts[0].tanh())[keep])
    (grad,) = torch.autograd.grad(weighted(got), given["gates"])
    assert torch.equal(grad[..., 5:10] != 0, keep)


# ------------------------------------------------------------------ chunks


@given(
    pooling=st.sampled_from(KINDS),
    length=st.integers(0, 8),
    cuts=st.lists(st.integers(0, 8), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_chunks_with_the_state_passed_on_equal_the_whole(
    pooling: str, length: int, cuts: list[int], seed: int
) -> None:
    given = inputs(pooling, shape=(2, length, 3), seed=seed)
    whole = pool(**given, pooling=pooling)
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    state, h, c = given["initial_state"], list[Any](), list[Any]()
    for start, end in itertools.pairwise(edges):
        part = pool(
            given["gates"][:, start:end], pooling=pooling, bias=given["bias"], initial_state=state
        )
        h, c, state = [*h, part.h], [*c, part.c], part.state
    chunked = PoolOutput(torch.cat(h, dim=1), torch.cat(c, dim=1), state)
    for a, b in zip(chunked, whole, strict=True):
        assert largest_difference(a, b) <= 1e-14
    names = ["gates", "bias", "initial_state"]
    leaves = [given[name] for name in names]
    ours, wholes = (
        torch.autograd.grad(weighted(x), leaves, materialize_grads=True, allow_unused=True)
        for x in (chunked, whole)
    )
    assert all(largest_difference(a, b) <= 1e-12 for a, b in zip(ours, wholes, strict=True))


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pooling": "of"}, f"`pooling` must be one of {', '.join(KINDS)}, but is 'of'."),
        (
            {"gates": torch.zeros(2, 9)},
            "`gates` must be (batch, time, 3 * hidden) for 'fo' pooling, but is (2, 9).",
        ),
        (
            {"gates": torch.zeros(2, 4, 8)},
            "`gates` must be (batch, time, 3 * hidden) for 'fo' pooling, but is (2, 4, 8).",
        ),
        (
            {"gates": torch.zeros(2, 4, 9, dtype=torch.int64)},
            "`gates` must be floating point, but is torch.int64.",
        ),
        ({"bias": torch.zeros(9)}, "`bias` must have shape (2, 9), but has (9,)."),
        ({"bias": torch.zeros(2, 3)}, "`bias` must have shape (2, 9), but has (2, 3)."),
        (
            {"initial_state": torch.zeros(1, 3)},
            "`initial_state` must have shape (2, 3), but has (1, 3).",
        ),
        ({"mask": torch.ones(2, 5)}, "`mask` must have shape (2, 4), but has (2, 5)."),
        ({"mask": torch.ones(2, 4, 1)}, "`mask` must have shape (2, 4), but has (2, 4, 1)."),
        ({"zoneout": 1.0}, "`zoneout` must be in [0, 1), but is 1.0."),
        ({"zoneout": -0.1}, "`zoneout` must be in [0, 1), but is -0.1."),
        ({"zoneout": math.nan}, "`zoneout` must be in [0, 1), but is nan."),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], sentence: str) -> None:
    arguments = {"gates": torch.zeros(2, 4, 9), "pooling": "fo", **changes}
    with pytest.raises(ValueError, match="must") as error:
        pool(**arguments)
    assert str(error.value) == sentence


# ------------------------------------------------------------------ the registered operations


@pytest.mark.parametrize("case", ["full", "bare", "half", "time_first", "no_steps"])
def test_operations_pass_opcheck(case: str) -> None:
    pooling = {"bare": "f", "half": "ifo"}.get(case, "fo")
    dtype = torch.bfloat16 if case == "half" else torch.float32
    extras = case != "bare"
    shape = (2, 0 if case == "no_steps" else 4, 3)
    given = inputs(pooling, shape=shape, dtype=dtype, bias=extras, initial_state=extras)
    if case == "time_first":
        time_first = given["gates"].detach().transpose(0, 1).contiguous()
        given["gates"] = time_first.transpose(0, 1).requires_grad_()
    if case == "no_steps":
        given["bias"] = given["bias"].detach().double().requires_grad_()
    zoneout = 0.5 if case == "full" else 0.0
    seed = torch.tensor(1) if zoneout else None
    mask = torch.ones(shape[:2]).tril().bool() if case == "full" else None
    options = (pooling, zoneout, case == "full")
    tensors = (*given.values(), mask, seed)
    wants = (case != "bare", case != "half", "auto")
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if case in ("full", "no_steps"):
        tests.append("test_aot_dispatch_dynamic")  # takes seconds
    torch.library.opcheck(FORWARD, (*tensors, *options, *wants), test_utils=tests)
    h, c, state, tiles = (x.detach() for x in FORWARD(*tensors, *options, True, True, "auto"))
    grads = [None if case == "bare" else torch.randn_like(x) for x in (h, c, state)]
    if case == "bare":
        grads[0] = torch.randn_like(h)
    arguments = (*grads, *tensors, tiles, *options, "auto")
    torch.library.opcheck(BACKWARD, arguments, test_utils=tests)


@pytest.mark.parametrize("pooling", KINDS)
def test_eager_calls_pass_by_the_dispatcher(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"mask": tensor_mask("empty_row"), "zoneout": 0.3, "seed": torch.tensor(2)}

    def run() -> list[torch.Tensor]:
        given = inputs(pooling)
        results = pool(**given, pooling=pooling, **options)
        loss = results.h.square().sum() + results.state.sum()
        first = torch.autograd.grad(loss, list(given.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(given.values()))
        return [results.h, results.state, *first, *second]

    with monkeypatch.context() as patch:
        patch.setattr(pooling_qrnn, "_PLAIN_TENSORS", ())
        by_operation = run()
    monkeypatch.setattr(pooling_qrnn, "_NAMESPACE", "no_such_namespace")
    assert all(torch.equal(a, b) for a, b in zip(run(), by_operation, strict=True))
    # Neither no_grad nor detached inputs build a graph.
    detached = {name: x.detach() for name, x in inputs(pooling).items()}
    with torch.no_grad():
        directly = pool(**inputs(pooling), pooling=pooling, **options).h
    for h in (directly, pool(**detached, pooling=pooling, **options).h):
        assert torch.equal(h, by_operation[0]) and not h.requires_grad  # noqa: PT018


def test_results_share_no_memory_and_arguments_stay_as_they_are() -> None:
    for pooling in KINDS:
        given = {name: x.detach() for name, x in inputs(pooling).items()}
        copies = {name: x.clone() for name, x in given.items()}
        got = pool(**given, pooling=pooling)
        got.h.add_(1)
        assert largest_difference(got.c, loop(**copies, pooling=pooling).c) <= 1e-12
        assert all(torch.equal(given[name], copies[name]) for name in given)


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("want_c", [False, True])
@pytest.mark.parametrize("want_tiles", [False, True])
def test_operation_runs_whatever_is_wanted(length: int, want_c: bool, want_tiles: bool) -> None:
    # The dispatcher refuses an operation that returns one tensor twice, empty ones included.
    gates = torch.randn(2, length, 6)
    with use_backend("torch"):
        h, c, _, tiles = FORWARD(
            gates, None, None, None, None, "fo", 0.0, False, want_c, want_tiles, "auto"
        )
    assert h.shape == (2, length, 2)
    assert c.shape == ((2, length, 2) if want_c else (0,))
    assert tiles.shape == ((2, min(length, 1), 2) if want_tiles else (0,))


def test_compiled_equals_eager_and_keeps_one_node_each_way() -> None:
    graphs: dict[str, list[torch.fx.GraphModule]] = {"forward": [], "backward": []}

    def record(way: str) -> Any:
        def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
            graphs[way].append(graph)
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(fw_compiler=record("forward"), bw_compiler=record("backward"))
    mask = tensor_mask("left_padded")

    def function(gates: torch.Tensor, bias: torch.Tensor, c0: torch.Tensor) -> PoolOutput:
        return pool(gates, pooling="ifo", bias=bias, initial_state=c0, mask=mask)

    given = inputs("ifo", dtype=torch.float32)
    arguments = list(given.values())
    eager = function(*arguments)
    wanted = gradients(eager, given)
    try:
        for chosen in ("aot_eager", backend):
            compiled = torch.compile(function, fullgraph=True, backend=chosen)
            got = compiled(*arguments)
            for a, b in zip(got, eager, strict=True):
                assert torch.equal(a, b)
            for a, b in zip(gradients(got, given), wanted, strict=True):
                assert torch.equal(a, b)
    finally:
        torch._dynamo.reset()
    for way, operation in (("forward", FORWARD), ("backward", BACKWARD)):
        targets = [node.target for graph in graphs[way] for node in graph.graph.nodes]
        assert targets.count(operation) == 1, way


def test_export_with_dynamic_time_keeps_the_operation() -> None:
    class Pool(torch.nn.Module):
        def forward(self, gates: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return pool(gates, pooling="fo", mask=mask, reverse=True).h

    time = torch.export.Dim("time", min=2, max=64)
    given = inputs("fo")["gates"].detach()
    mask = tensor_mask("empty_row")
    shapes = {"gates": {1: time}, "mask": {1: time}}
    program = torch.export.export(Pool(), (given, mask), dynamic_shapes=shapes)
    assert [node.target for node in program.graph.nodes].count(FORWARD) == 1
    longer = torch.cat([given, given], dim=1)
    longer_mask = torch.cat([mask, mask], dim=1)
    assert torch.equal(program.module()(longer, longer_mask), Pool()(longer, longer_mask))


def test_second_copy_of_the_file_uses_the_first_ones_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A model folder from the Hub brings its own copy of the file into the package's process.
    folder = types.ModuleType("a_hub_folder")
    folder.__path__ = [str(Path(pooling_qrnn.__file__).parent)]
    monkeypatch.setitem(sys.modules, "a_hub_folder", folder)

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"{name} is registered twice")

    # Registering again would not fail, but take the operations away from the first copy.
    monkeypatch.setattr(torch.library, "custom_op", refuse)
    copy = importlib.import_module("a_hub_folder.pooling_qrnn")
    assert copy is not pooling_qrnn
    given = inputs("fo")
    theirs, ours = (x(**given, pooling="fo", return_c=True) for x in (copy.pool, pool))
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
    pairs = zip(gradients(theirs, given), gradients(ours, given), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
