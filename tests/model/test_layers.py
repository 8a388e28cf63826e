"""hf_qrnn.model.layers_qrnn: pads, directions, windows and steps change nothing; Eqs. 1 and 7."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pooling_loop import loop
from torch import nn
from torch.utils._pytree import tree_flatten

from hf_qrnn.model import convolution_qrnn, paired_convolution_qrnn
from hf_qrnn.model.blocks_qrnn import Connection, FeedForward
from hf_qrnn.model.layers_qrnn import LayerState, QRNNLayer
from hf_qrnn.model.padding_qrnn import last_inputs, last_step
from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS
from hf_qrnn.model.pooling_qrnn import NUM_GATES, pool

pytestmark = pytest.mark.usefixtures("nan_memory", "products")

KINDS = tuple(POOL_KINDS)
E, H = 3, 4


@pytest.fixture(scope="module", params=[False, True], ids=["windows", "pairs"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test with either way to convolve, where the width of the filter allows it."""
    with pytest.MonkeyPatch.context() as patch:
        least = 1 if request.param else 2**62
        patch.setattr(convolution_qrnn, "LEAST_STEPS", least)
        patch.setattr(convolution_qrnn, "prefers_onednn", lambda: False)
        for name in ("LEAST_PAIRS", "LEAST_INPUTS", "LEAST_OUTPUTS"):
            patch.setattr(paired_convolution_qrnn, name, least)
        yield


kinds = st.sampled_from(KINDS)
widths = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def ragged(draw: st.DrawFn, least: int = 0) -> list[tuple[int, int, int]]:
    """Rows of equal width: (pads before, real steps, pads behind)."""
    width = draw(st.integers(max(1, least), 8))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        real = draw(st.integers(least, width))
        before = draw(st.sampled_from([0, width - real, draw(st.integers(0, width - real))]))
        rows.append((before, real, width - real - before))
    return rows


def make_layer(seed: int, pooling: str, kernel_size: int, **options: Any) -> QRNNLayer:
    torch.manual_seed(seed)
    return QRNNLayer(E, H, kernel_size, pooling=pooling, **options).double()


def make_rows(lengths: list[int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, E, generator=generator, dtype=torch.float64) for n in lengths]


def pad(rows: list[torch.Tensor], shape: list[tuple[int, int, int]]) -> tuple[torch.Tensor, ...]:
    """One batch with NaN at the pads, which nobody may read, and its mask."""
    padded = [
        nn.functional.pad(x, (0, 0, before, behind), value=torch.nan)
        for x, (before, _, behind) in zip(rows, shape, strict=True)
    ]
    mask = [[0] * before + [1] * real + [0] * behind for before, real, behind in shape]
    return torch.stack(padded), torch.tensor(mask).bool()


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def all_close(some: Any, others: Any, tolerance: float = 1e-10) -> None:
    for a, b in zip(some, others, strict=True):
        close(a, b, tolerance)


# ------------------------------------------------------------------ padding


@given(
    pooling=kinds,
    kernel_size=widths,
    causal=st.booleans(),
    reverse=st.booleans(),
    shape=ragged(),
    seed=seeds,
)
def test_layer_is_padding_invariant_in_values_and_gradients(
    pooling: str,
    kernel_size: int,
    causal: bool,
    reverse: bool,
    shape: list[tuple[int, int, int]],
    seed: int,
) -> None:
    layer = make_layer(seed, pooling, kernel_size, causal=causal, reverse=reverse)
    rows = [x.requires_grad_() for x in make_rows([real for _, real, _ in shape], seed)]
    weights = make_rows([real for _, real, _ in shape], seed + 1)
    together, mask = pad(rows, shape)
    got = layer(together, mask, want_c=True)
    assert (got.h[~mask] == 0).all()

    losses = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    for b, (before, real, _) in enumerate(shape):
        if real == 0:
            assert (got.c[b] == 0).all()
            assert got.state is None or (got.state.inputs[b] == 0).all()
            continue
        inside = slice(before, before + real)
        alone = layer(rows[b][None], want_c=True)
        close(got.h[b, inside], alone.h[0])
        close(got.c[b, inside], alone.c[0])
        assert (got.state is None) == (alone.state is None) == (reverse or not causal)
        if got.state is not None:
            all_close((x[b] for x in got.state), (x[0] for x in alone.state))
        for which, output in enumerate((got.h[b, inside], alone.h[0])):
            losses[which] = losses[which] + (output.sum(1, keepdim=True) * weights[b]).sum()
    if not any(real for _, real, _ in shape):
        losses = [got.h.sum(), sum((p.sum() * 0 for p in layer.parameters()), losses[1])]
    leaves = [*layer.parameters(), *rows]
    ours, apart = (
        torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
        for loss in losses
    )
    all_close(ours, apart)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("pooling", KINDS)
def test_row_without_a_real_step_is_zero_with_zero_gradients(pooling: str, reverse: bool) -> None:
    layer = make_layer(0, pooling, 3, causal=False, reverse=reverse)
    x = torch.full((1, 4, E), torch.nan).double().requires_grad_()
    got = layer(x, torch.zeros(1, 4).bool(), want_c=True)
    assert (got.h == 0).all()
    assert (last_step(got.h, torch.zeros(1, 4).bool(), reverse=reverse) == 0).all()
    (got.h + got.c).sum().backward()
    for leaf in (x, *layer.parameters()):
        assert (leaf.grad == 0).all()


# ------------------------------------------------------------------ order in time


@given(pooling=kinds, kernel_size=widths, length=st.integers(2, 7), seed=seeds, data=st.data())
def test_causal_layer_does_not_look_ahead(
    pooling: str, kernel_size: int, length: int, seed: int, data: st.DataObject
) -> None:
    layer = make_layer(seed, pooling, kernel_size)
    t = data.draw(st.integers(0, length - 2))
    x = make_rows([length], seed)[0][None].requires_grad_()
    other = x.detach().clone()
    other[:, t + 1 :] = 100.0
    got, changed = (layer(given, want_c=True) for given in (x, other))
    close(changed.h[:, : t + 1], got.h[:, : t + 1], 1e-14)
    close(changed.c[:, : t + 1], got.c[:, : t + 1], 1e-14)
    (grad,) = torch.autograd.grad(got.h[:, t].sum(), x)
    assert (grad[:, t + 1 :] == 0).all()
    assert (grad[:, max(0, t - kernel_size + 1) : t + 1] != 0).all()


def forgetful(layer: QRNNLayer) -> QRNNLayer:
    """A layer whose f is 0: its output at t is its convolution at t."""
    with torch.no_grad():
        layer.convolution.weight[H : 2 * H] = 0.0
        layer.convolution.bias[H : 2 * H] = -1000.0
    return layer


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("kernel_size", range(1, 7))
def test_output_reads_exactly_its_window(kernel_size: int, causal: bool, reverse: bool) -> None:
    layer = forgetful(make_layer(0, "fo", kernel_size, causal=causal, reverse=reverse))
    length = 9
    x = torch.randn(1, length, E).double().requires_grad_()
    h = layer(x).h
    # In processing order: (k-1)//2 steps before and k//2 after, or all k-1 before.
    before = kernel_size - 1 if causal else (kernel_size - 1) // 2
    after = 0 if causal else kernel_size // 2
    if reverse:
        before, after = after, before
    for t in range(length):
        (grad,) = torch.autograd.grad(h[0, t].sum(), x, retain_graph=True)
        seen = {s for s in range(length) if (grad[0, s] != 0).any()}
        assert seen == set(range(max(0, t - before), min(length, t + after + 1)))


@given(
    pooling=kinds,
    kernel_size=widths,
    causal=st.booleans(),
    length=st.integers(1, 7),
    seed=seeds,
)
def test_reverse_layer_is_the_forward_layer_on_the_flipped_row(
    pooling: str, kernel_size: int, causal: bool, length: int, seed: int
) -> None:
    forward = make_layer(seed, pooling, kernel_size, causal=causal)
    backward = make_layer(seed, pooling, kernel_size, causal=causal, reverse=True)
    x = make_rows([length], seed)[0][None]
    flipped, got = forward(x.flip(1), want_c=True), backward(x, want_c=True)
    close(got.h, flipped.h.flip(1))
    close(got.c, flipped.c.flip(1))


# ------------------------------------------------------------------ steps and chunks


@given(
    pooling=kinds,
    kernel_size=widths,
    shape=ragged(),
    cuts=st.lists(st.integers(0, 8), max_size=3),
    stepwise=st.booleans(),
    decoder=st.booleans(),
    seed=seeds,
)
def test_steps_and_chunks_equal_the_whole(
    pooling: str,
    kernel_size: int,
    shape: list[tuple[int, int, int]],
    cuts: list[int],
    stepwise: bool,
    decoder: bool,
    seed: int,
) -> None:
    layer = make_layer(seed, pooling, kernel_size, encoding_size=2 if decoder else None)
    x, mask = pad(make_rows([real for _, real, _ in shape], seed), shape)
    length, gate_bias = x.shape[1], None
    if layer.encoding is not None:
        gate_bias = layer.encoding(torch.randn(len(shape), 2).double())
    options = {"gate_bias": gate_bias, "want_c": True, "want_o": True}
    whole = layer(x, mask, **options)
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    if stepwise:
        edges = list(range(length + 1))
    state: LayerState | None = None
    parts = []
    for start, end in pairwise(edges):
        inside = slice(start, end)
        parts.append(layer(x[:, inside], mask[:, inside], state=state, **options))
        state = parts[-1].state
    close(torch.cat([part.h for part in parts], dim=1), whole.h)
    close(torch.cat([part.c for part in parts], dim=1), whole.c)
    if POOL_KINDS[pooling].has_output_gate:
        o = torch.cat([part.o for part in parts], dim=1)
        close(o[mask], whole.o[mask])
    all_close(state, whole.state)
    leaves = list(layer.parameters())
    ours, wholes = (
        torch.autograd.grad(
            loss, leaves, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        for loss in (sum(part.h.square().sum() for part in parts), whole.h.square().sum())
    )
    all_close(ours, wholes)


# ------------------------------------------------------------------ Eqs. 1 and 7


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 6])
@pytest.mark.parametrize("pooling", KINDS)
def test_layer_is_conv1d_then_pool(
    pooling: str, kernel_size: int, causal: bool, reverse: bool
) -> None:
    layer = make_layer(0, pooling, kernel_size, causal=causal, reverse=reverse)
    x = torch.randn(2, 7, E).double()
    # (G*H, K*E), oldest tap first, to conv1d's (G*H, E, K); conv1d's tap 0 is the oldest too.
    weight = layer.convolution.weight.unflatten(1, (kernel_size, E)).transpose(1, 2)
    left = kernel_size - 1 if causal else (kernel_size - 1) // 2
    channels_first = (x.flip(1) if reverse else x).transpose(1, 2)
    channels_first = nn.functional.pad(channels_first, (left, kernel_size - 1 - left))
    gates = nn.functional.conv1d(channels_first, weight, layer.convolution.bias).transpose(1, 2)
    wanted = pool(gates, pooling=pooling, return_c=True)
    got = layer(x, want_c=True)
    close(got.h, wanted.h.flip(1) if reverse else wanted.h)
    close(got.c, wanted.c.flip(1) if reverse else wanted.c)


@pytest.mark.parametrize("pooling", KINDS)
def test_gate_bias_adds_v_h_tilde_to_every_gate_at_every_step(pooling: str) -> None:
    # Eq. 7: each gate owns a V without a bias, and reads the same h~ at every timestep.
    layer = make_layer(0, pooling, 2, encoding_size=5)
    assert layer.encoding is not None
    assert layer.encoding.bias is None
    assert layer.encoding.weight.shape == (NUM_GATES[pooling] * H, 5)
    x, h_tilde = torch.randn(2, 4, E).double(), torch.randn(2, 5).double()
    got = layer(x, gate_bias=layer.encoding(h_tilde), want_c=True, want_o=True)

    def pre_activation(gate: int, b: int, t: int) -> torch.Tensor:
        units = slice(gate * H, (gate + 1) * H)
        before = x[b, t - 1] if t > 0 else torch.zeros(E).double()
        total = layer.convolution.bias[units] + layer.encoding.weight[units] @ h_tilde[b]
        total = total + layer.convolution.weight[units, :E] @ before
        return total + layer.convolution.weight[units, E:] @ x[b, t]

    gates = torch.stack(
        [
            torch.stack([pre_activation(g, b, t) for g in range(NUM_GATES[pooling])]).flatten()
            for b in range(2)
            for t in range(4)
        ]
    ).unflatten(0, (2, 4))  # (B, T, G*H)
    wanted = loop(gates, pooling)
    close(got.c, wanted.c)
    close(got.h, wanted.h)
    if POOL_KINDS[pooling].has_output_gate:
        close(got.o, gates[..., 2 * H : 3 * H].sigmoid())
    else:
        assert got.o is None


def test_layer_zones_out_in_training_only() -> None:
    layer = make_layer(0, "fo", 2, zoneout=0.5)
    x = torch.randn(2, 6, E).double()
    outputs = {mode: [layer.train(mode)(x).h for _ in range(2)] for mode in (True, False)}
    assert not torch.equal(*outputs[True])
    assert torch.equal(*outputs[False])
    plain = make_layer(0, "fo", 2)
    assert torch.equal(plain(x).h, outputs[False][0])


# ------------------------------------------------------------------ last_inputs, last_step


@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("pooling", KINDS)
def test_blocks_of_rows_equal_all_rows_at_once(
    pooling: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer(3, pooling, 2, causal=causal, encoding_size=H).eval()
    shape = [(0, 5, 0), (3, 2, 0), (5, 0, 0), (0, 4, 1), (0, 5, 0)]
    x, mask = pad(make_rows([real for _, real, _ in shape], 4), shape)
    assert layer.encoding is not None
    options: dict[str, Any] = {"gate_bias": layer.encoding(torch.randn(5, H).double()).detach()}
    options |= {"want_c": True, "want_o": True, "want_past": causal}
    if causal:
        options["state"] = LayerState(torch.randn(5, 1, E).double(), torch.randn(5, H).double())
    calls: list[int] = []
    run = QRNNLayer._run
    monkeypatch.setattr(
        QRNNLayer, "_run", lambda self, x, *others: (calls.append(len(x)), run(self, x, *others))[1]
    )
    whole = layer(x, mask, **options)
    per_row = 5 * (2 * E + NUM_GATES[pooling] * H) * 8
    monkeypatch.setattr("hf_qrnn.model.layers_qrnn.BLOCK_BYTES", 2 * per_row + 1)
    with torch.no_grad():
        blocks = layer(x, mask, **options)
    layer(x, mask, **options)  # with gradients nothing is cut
    assert calls == [5, 2, 2, 1, 5]
    leaves, structure = tree_flatten(whole)
    others, same = tree_flatten(blocks)
    assert structure == same
    all_close(leaves, others, 1e-14)


def test_last_inputs_end_at_the_last_real_step() -> None:
    # Two rows from before (8, 9), then four steps.
    padded = torch.tensor([[8.0, 9, 1, 2, 3, 4]]).T[None].expand(5, 6, 1)
    mask = torch.tensor(
        [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
    ).bool()
    found = last_inputs(padded, mask, 2)[..., 0].tolist()
    assert found == [[3, 4], [1, 2], [9, 1], [8, 9], [3, 4]]
    assert last_inputs(padded, None, 2)[0, :, 0].tolist() == [3, 4]
    assert last_inputs(padded[:, :2], mask[:, :0], 2)[0, :, 0].tolist() == [8, 9]
    assert last_inputs(padded, None, 0).shape == (5, 0, 1)


def test_last_step_is_last_in_processing_order() -> None:
    h = torch.tensor([[1.0, 2, 3], [0, 5, 0], [7, 8, 0], [0, 0, 0]])[..., None]
    mask = h[..., 0] != 0
    assert last_step(h, mask)[:, 0].tolist() == [3, 5, 8, 0]
    assert last_step(h, mask, reverse=True)[:, 0].tolist() == [1, 5, 7, 0]
    assert last_step(h, None)[:, 0].tolist() == [3, 0, 0, 0]
    assert last_step(h, None, reverse=True)[:, 0].tolist() == [1, 0, 7, 0]
    assert last_step(h[:, :0], mask[:, :0]).tolist() == [[0], [0], [0], [0]]


# ------------------------------------------------------------------ what stands around a layer


def test_feed_forward_is_gated_prenorm_and_residual() -> None:
    block = FeedForward(H, 6, dropout=0.0).double()
    nn.init.normal_(block.norm.weight)
    x = torch.randn(2, 3, H).double()
    weights = (block.norm.weight, block.gate_and_in.weight, block.out.weight)
    x_, gain, w, w_out = (tensor.detach().numpy() for tensor in (x, *weights))
    n = gain * x_ / numpy.sqrt((x_**2).mean(-1, keepdims=True) + 1e-6)
    gate, inner = n @ w[:6].T, n @ w[6:].T
    wanted = x_ + (gate / (1 + numpy.exp(-gate)) * inner) @ w_out.T
    numpy.testing.assert_allclose(block(x).detach().numpy(), wanted, rtol=1e-10)
    assert (block(torch.zeros_like(x)) == 0).all()


def test_connection_adds_the_input_where_widths_agree() -> None:
    x, h = torch.randn(2, 3, H), torch.randn(2, 3, H)
    options = {"dropout": 0.0, "rms_norm": False}
    assert torch.equal(Connection(H, H, residual=True, **options).after(x, h).out, x + h)
    assert torch.equal(Connection(H, H, residual=False, **options).after(x, h).out, h)
    narrow = torch.randn(2, 3, E)
    assert torch.equal(Connection(E, H, residual=True, **options).after(narrow, h).out, h)
    assert torch.equal(Connection(H, H, residual=True, **options).before(x), x)


def test_connection_norms_the_layers_input_only() -> None:
    connection = Connection(E, H, dropout=0.0, residual=False, rms_norm=True)
    x = torch.randn(2, 3, E)
    wanted = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(connection.before(x), wanted)
    h = torch.randn(2, 3, H)
    got = connection.after(x, h)
    assert torch.equal(got.out, h)
    assert got.normed is None


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_connection_norms_its_sum_for_the_block_behind_it(residual: bool) -> None:
    connection = Connection(H, H, dropout=0.5, residual=residual, rms_norm=False).train()
    norm = nn.RMSNorm(H, eps=1e-6)
    norm.weight.data.uniform_(0.5, 2.0)
    out, normed = connection.after(torch.randn(2, 3, H), torch.randn(2, 3, H), norm)
    assert normed is not None
    wanted = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(normed, wanted)


def test_connection_drops_out_once_and_spares_the_residual() -> None:
    connection = Connection(H, H, dropout=0.5, residual=True, rms_norm=False).train()
    x, h = torch.full((50, 20, H), 10.0), torch.ones(50, 20, H)
    own = connection.after(x, h).out - x
    # Once: zero or 1/(1 - p); twice would give 4 in places and zero three times in four.
    assert set(own.unique().tolist()) == {0.0, 2.0}
    assert (own == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(connection.before(x), x)
    assert torch.equal(connection.eval().after(x, h).out, x + h)
