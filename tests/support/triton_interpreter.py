"""The Triton kernels in Triton's interpreter; test_triton.py runs this file with it switched on."""

from typing import Any

import pytest
import torch
from pooling_loop import in_double, inputs, largest_difference, loop

from hf_qrnn.model import triton_qrnn
from hf_qrnn.model.backends_qrnn import VARIABLE
from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS
from hf_qrnn.model.pooling_qrnn import NUM_GATES, pool, zoneout_keep
from hf_qrnn.model.triton_qrnn import pool_backward, pool_forward

pytestmark = pytest.mark.usefixtures("nan_memory")

KINDS = tuple(name for name, kind in POOL_KINDS.items() if kind.in_triton)
# Largest difference, relative to the largest number there if that is above 1: of h and the gates'
# gradient, which have the gates' dtype (one rounding), and of all that is never below float32.
TOLERANCE = {
    torch.float64: (1e-13, 1e-13),
    torch.float32: (1e-6, 1e-6),
    torch.bfloat16: (1.01 * 2**-7, 1e-6),  # the interpreter cuts off where a GPU rounds
    torch.float16: (1.01 * 2**-11, 1e-6),
}
MASK = torch.tensor(
    [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0], [0] * 11]
).bool()
H = 3
SEED = 7


@pytest.fixture(scope="module", autouse=True)
def _quick_interpreter() -> None:
    """Patch Triton's language once, where the interpreter would at every call of a function."""
    for name, function in list(vars(triton_qrnn).items()):
        if hasattr(function, "rewrite") and not name.endswith("_kernel"):
            setattr(triton_qrnn, name, function.rewrite())


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles smaller: 11 steps are two of them, and a group is partly outside."""
    monkeypatch.setattr(triton_qrnn, "TILE", 8)
    monkeypatch.setattr(triton_qrnn, "_FORWARD_STEPS", 4)
    monkeypatch.setattr(triton_qrnn, "_WIDE_FORWARD_STEPS", 2)


def check(
    given: dict[str, torch.Tensor | None],
    pooling: str,
    mask: torch.Tensor | None = None,
    zoneout: float = 0.0,
    reverse: bool = False,
    read: tuple[str, ...] = ("h", "c", "state"),
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Compare values and gradients with the loop's; return what the kernels gave."""
    gates, bias, initial = (None if x is None else x.detach() for x in given.values())
    assert gates is not None
    state_dtype = torch.float64 if gates.dtype == torch.float64 else torch.float32
    if initial is not None:
        initial = initial.to(state_dtype)
    seed = torch.tensor(SEED)
    exact = in_double({"gates": gates, "bias": bias, "initial_state": initial})
    rows = None if mask is None else mask.tolist()
    options = {"pooling": pooling, "zoneout": zoneout, "reverse": reverse}
    wanted = loop(**exact, mask=rows, seed=SEED, **options)

    causes = (gates, bias, initial, mask, seed)
    *got, tiles = pool_forward(*causes, pooling, zoneout, reverse, True, True)
    of_h, of_state = TOLERANCE[gates.dtype]
    assert [x.dtype for x in got] == [gates.dtype, state_dtype, state_dtype]
    compare(zip(got, wanted, (of_h, of_state, of_state), strict=True))

    generator = torch.Generator().manual_seed(1)
    cotangents = {
        name: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        for name, x in zip(("h", "c", "state"), got, strict=True)
        if name in read
    }
    sent = [cotangents.get(name) for name in ("h", "c", "state")]
    found = list(pool_backward(*sent, *causes, tiles, pooling, zoneout, reverse))
    assert [x.dtype for x in found] == [gates.dtype, state_dtype, state_dtype]
    leaves = {name: x for name, x in exact.items() if x is not None}
    read_results = [getattr(wanted, name) for name in cotangents]
    gradients = torch.autograd.grad(
        read_results, list(leaves.values()), [x.double() for x in cotangents.values()]
    )
    expected = dict(zip(leaves, gradients, strict=True))
    names = zip(("gates", "bias", "initial_state"), found, (of_h, of_state, of_state), strict=True)
    compare((x, expected[name], tolerance) for name, x, tolerance in names if name in expected)
    if bias is None:
        assert found[1].shape == (0,)
    assert not any(x.isnan().any() for x in found)
    if mask is not None:
        assert (got[0][~mask] == 0).all()
        assert (found[0][~mask] == 0).all()
    return [*got, tiles], found


def compare(triples: Any) -> None:
    for ours, loops, tolerance in triples:
        largest = max(1.0, float(loops.detach().abs().max())) if loops.numel() else 1.0
        assert largest_difference(ours, loops) <= tolerance * largest


# ------------------------------------------------------------------ values and gradients


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("dtype", "rows", "reverse"),
    [
        (torch.float64, slice(0, 3), False),
        (torch.float32, slice(0, 1), True),
        (torch.float32, slice(1, 2), False),
        (torch.bfloat16, slice(0, 1), False),
        (torch.float16, slice(1, 2), True),
    ],
    ids=str,
)
@pytest.mark.parametrize("pooling", KINDS)
def test_everything_at_once_matches_the_loop(
    pooling: str, dtype: torch.dtype, rows: slice, reverse: bool
) -> None:
    mask = MASK[rows]
    given = inputs(pooling, shape=(*mask.shape, H), dtype=dtype)
    check(given, pooling, mask=mask, zoneout=0.4, reverse=reverse)


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "bias": {"bias": True},
    "initial_state": {"initial_state": True},
    "mask": {"mask": MASK[:1, :5]},
    "zoneout": {"zoneout": 0.4},
    "reverse": {"reverse": True},
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("pooling", KINDS)
def test_each_option_alone_matches_the_loop(pooling: str, option: str) -> None:
    chosen = {"bias": False, "initial_state": False, **OPTIONS[option]}
    given = inputs(
        pooling, shape=(1, 5, H), bias=chosen.pop("bias"), initial_state=chosen.pop("initial_state")
    )
    check(given, pooling, **chosen)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("read", ["h", "c", "state"])
@pytest.mark.parametrize("pooling", KINDS)
def test_gradient_through_one_result_alone(pooling: str, read: str) -> None:
    check(inputs(pooling, shape=(1, 3, 2)), pooling, mask=MASK[1:2, 8:], read=(read,))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (1, 33, 1), (1, 2, 33)], ids=str)
def test_odd_shapes_match_the_loop_with_tiles_of_32(shape: tuple[int, int, int]) -> None:
    given = inputs("fo", shape=shape, dtype=torch.float32)
    (_, c, _, tiles), _ = check(given, "fo")
    assert tiles.shape == (shape[0], -(-shape[1] // 32), shape[2])
    assert torch.equal(tiles[:, 0], given["initial_state"].detach())
    for tile in range(1, tiles.shape[1]):
        assert torch.equal(tiles[:, tile], c[:, 32 * tile - 1])


@pytest.mark.usefixtures("small_tiles")
def test_two_channels_a_thread_match_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_qrnn, "_WIDE_FROM", 0)
    check(inputs("ifo", shape=(1, 5, 65), dtype=torch.float32), "ifo", zoneout=0.3)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)], ids=str)
@pytest.mark.parametrize("pooling", KINDS)
def test_empty_shapes(pooling: str, shape: tuple[int, int, int]) -> None:
    batch, length, hidden = shape
    gates = torch.empty(batch, length, NUM_GATES[pooling] * hidden)
    bias = torch.ones(batch, NUM_GATES[pooling] * hidden)
    initial = torch.arange(float(batch * hidden)).reshape(batch, hidden)
    causes = (gates, bias, initial, None, None)
    h, c, state, tiles = pool_forward(*causes, pooling, 0.0, False, True, True)
    assert h.shape == c.shape == shape
    assert tiles.shape == (batch, -(-length // 32), hidden)
    grad_state = torch.full_like(state, 2.0)
    found = pool_backward(h, c, grad_state, *causes, tiles, pooling, 0.0, False)
    assert found[0].shape == gates.shape
    if length == 0:
        assert torch.equal(state, initial)
        assert torch.equal(found[1], torch.zeros_like(bias))
        assert torch.equal(found[2], grad_state)


# ------------------------------------------------------------------ promises


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("seed", "probability"), [(0, 0.25), (-3, 0.5), (2**63 - 1, 0.9)])
def test_zoneout_bits_are_those_of_the_definition(seed: int, probability: float) -> None:
    batch, length, hidden = 2, 3, 32
    gates = torch.zeros(batch, length, 2 * hidden)
    gates[..., hidden:] = -200.0  # f = 0 where it is left alone: the state is forgotten at once
    seed_tensor = torch.tensor(seed)
    one = torch.ones(batch, hidden)
    kept = zoneout_keep(seed_tensor, batch, length, hidden, probability)
    options = ("f", probability, False, True, False)
    _, c, _, _ = pool_forward(gates, None, one, None, seed_tensor, *options)
    assert torch.equal(c == 0, kept.cumsum(1) > 0)
    assert kept.any()
    assert not kept.all()


def test_activations_keep_their_digits_at_both_ends() -> None:
    x = torch.cat([torch.logspace(-6, 1.2, 30), torch.tensor([0.0, 0.4999, 0.5001, 40.0])])
    x = torch.cat([x, -x])
    keep = torch.full_like(x, -40.0)
    gates = torch.cat([x, keep])[None, None]  # f-pooling from zero: c = sigma(40) tanh(x)
    _, c, _, _ = pool_forward(gates, None, None, None, None, "f", 0.0, False, True, False)
    torch.testing.assert_close(c[0, 0], x.double().tanh().float(), rtol=4e-7, atol=0)
    gates = torch.cat([torch.full_like(x, 20.0), x])[None, None]  # c = 1 - f, long memories too
    _, c, _, _ = pool_forward(gates, None, None, None, None, "f", 0.0, False, True, False)
    torch.testing.assert_close(c[0, 0], (-x).double().sigmoid().float(), rtol=4e-7, atol=0)
    gates, exact = gates.double(), (-x.double()).sigmoid()
    _, c, _, _ = pool_forward(gates, None, None, None, None, "f", 0.0, False, True, False)
    torch.testing.assert_close(c[0, 0], exact, rtol=1e-15, atol=0)


@pytest.mark.usefixtures("small_tiles")
def test_strided_arguments_equal_contiguous_ones_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(5, 2, 3 * H, generator=generator).transpose(0, 1)
    rows = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    mask = rows.T.contiguous().T
    assert not gates.is_contiguous()
    assert not mask.is_contiguous()
    channels_apart = torch.stack([gates, gates], dim=-1)[..., 0]
    grad_h = torch.ones(()).expand(2, 5, H)
    results = []
    for x, m in [(gates, mask), (gates.contiguous(), rows), (channels_apart, mask)]:
        causes = (x, None, None, m, None)
        *got, tiles = pool_forward(*causes, "fo", 0.0, False, True, True)
        found = pool_backward(grad_h, grad_h.contiguous(), None, *causes, tiles, "fo", 0.0, False)
        results.append([*got, *found])
    for other in results[1:]:  # and: two runs give the same bits
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("pooling", KINDS)
def test_what_stands_at_pads_is_never_seen(pooling: str) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 0, 0]]).bool()
    gates, bias, initial = (x.detach() for x in inputs(pooling, shape=(1, 6, H)).values())
    spoilt = torch.where(mask[..., None], gates, torch.nan)
    results = []
    for x in (gates, spoilt):
        causes = (x, bias, initial, mask, None)
        h, c, state, tiles = pool_forward(*causes, pooling, 0.0, True, True, True)
        grads = pool_backward(h, c, state, *causes, tiles, pooling, 0.0, True)
        results.append([h, c, state, tiles, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.usefixtures("small_tiles")
def test_pool_runs_on_these_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)  # it is stronger than the argument
    given = inputs("fo", shape=(2, 3, H))
    leaves = list(given.values())
    results = {}
    for backend in ("triton", "torch"):
        output = pool(**given, pooling="fo", mask=MASK[:2, 2:5], backend=backend)
        first = torch.autograd.grad(output.h.sum() + output.state.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), leaves)
        results[backend] = [output.h, output.state, *first, *second]
    for ours, others in zip(results["triton"], results["torch"], strict=True):
        torch.testing.assert_close(ours, others, rtol=0, atol=1e-13)
    # Not the definition under another name: it rounds otherwise.
    pairs = zip(results["triton"], results["torch"], strict=True)
    assert not all(torch.equal(ours, others) for ours, others in pairs)


@pytest.mark.usefixtures("small_tiles")
def test_what_is_not_wanted_is_empty() -> None:
    gates = torch.zeros(1, 2, 4)
    h, c, state, tiles = pool_forward(gates, None, None, None, None, "f", 0.0, False, False, False)
    assert c.shape == tiles.shape == (0,)
    assert (h.shape, state.shape) == ((1, 2, 2), (1, 2))
    assert not h.isnan().any()


def test_other_dtypes_are_refused() -> None:
    gates = torch.zeros(1, 2, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match="`gates` must be one of"):
        pool_forward(gates, None, None, None, None, "f", 0.0, False, True, True)
    with pytest.raises(TypeError, match="`gates` must be one of"):
        pool_backward(None, None, None, gates, None, None, None, None, gates, "f", 0.0, False)


def test_interpreter_runs_on_any_device() -> None:
    assert triton_qrnn.why_unavailable(torch.device("cpu")) is None
