"""Encoder and decoder: pads, order and h~ of the whole stacks."""

import functools
from typing import Any

import pytest
import small_models
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_qrnn import QRNNConfig, QRNNForSequenceClassification
from hf_qrnn.model.decoder_qrnn import QRNNDecoder
from hf_qrnn.model.encoder_qrnn import QRNNEncoder, QRNNEncoderOutput
from hf_qrnn.model.layers_qrnn import QRNNLayer
from hf_qrnn.model.padding_qrnn import real_steps

pytestmark = pytest.mark.usefixtures("nan_memory")

E, H, S, T = 5, 4, 6, 5
CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "f_forward": {"pooling": "f", "reverse_source": False},
    "ifo_causal_even": {"pooling": "ifo", "encoder_causal": True, "encoder_kernel_sizes": 4},
    "dense": {"dense_connections": True},
    "dense_bidirectional": {"dense_connections": True, "encoder_bidirectional": True},
    "residual_norm": {"residual": True, "rms_norm": True, "embedding_size": H},
    "residual_widths_differ": {"residual": True},
    "bidirectional_causal": {"encoder_bidirectional": True, "encoder_causal": True},
    "bidirectional_forward": {"encoder_bidirectional": True, "reverse_source": False},
    "attend_all": {"attention_layers": "all", "num_attention_heads": 2, "attention_scaling": True},
    "feed_forward": {"feed_forward_size": 6},
    "modern": {
        "residual": True,
        "rms_norm": True,
        "encoder_bidirectional": True,
        "attention_layers": "all",
        "num_attention_heads": 2,
        "attention_scaling": True,
        "feed_forward_size": 6,
    },
}
every_config = pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)

# (pads before, real, pads behind); the last source row is empty.
SOURCES = {
    "left": [(0, 6, 0), (2, 4, 0), (5, 1, 0), (6, 0, 0)],
    "right": [(0, 6, 0), (0, 4, 2), (0, 1, 5), (0, 0, 6)],
}
TARGETS = {
    "left": [(0, 5, 0), (3, 2, 0), (0, 5, 0), (4, 1, 0)],
    "right": [(0, 5, 0), (0, 2, 3), (0, 5, 0), (0, 1, 4)],
}


small = functools.partial(
    small_models.small, vocab_size=10, embedding_size=E, hidden_size=H, encoder_layers=3,
    encoder_kernel_sizes=[4, 2, 3],
)  # fmt: skip


def build(config: QRNNConfig, seed: int = 0) -> tuple[QRNNEncoder, QRNNDecoder]:
    torch.manual_seed(seed)
    encoder = QRNNEncoder(config).double().eval()
    decoder = QRNNDecoder(config, reads_source=True).double().eval()
    for module in (encoder, decoder):
        for part in module.modules():
            if isinstance(part, nn.RMSNorm):
                nn.init.uniform_(part.weight, 0.5, 2.0)
    return encoder, decoder


def batch(rows: list[torch.Tensor], shape: list[tuple[int, int, int]]) -> tuple[torch.Tensor, ...]:
    """Rows between pads of NaN, and an int64 mask as tokenizers make it."""
    padded = [
        nn.functional.pad(x, (0, 0, before, behind), value=torch.nan)
        for x, (before, _, behind) in zip(rows, shape, strict=True)
    ]
    mask = [[0] * before + [1] * real + [0] * behind for before, real, behind in shape]
    return torch.stack(padded), torch.tensor(mask)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def parameters_gradients(loss: torch.Tensor, *modules: nn.Module) -> list[torch.Tensor]:
    leaves = [p for module in modules for p in module.parameters()]
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


# ------------------------------------------------------------------ padding


@pytest.mark.parametrize("want_weights", [True, False], ids=["weights", "sdpa"])
@every_config
def test_encoder_and_decoder_are_padding_invariant(
    fields: dict[str, Any], want_weights: bool
) -> None:
    encoder, decoder = build(small(**fields))
    width = small(**fields).embedding_size
    sources = [torch.randn(real, width).double() for _, real, _ in SOURCES["left"]]
    targets = [torch.randn(real, width).double() for _, real, _ in TARGETS["left"]]

    losses, found = [], []
    for side in ("left", "right"):
        x, source_mask = batch(sources, SOURCES[side])
        y, target_mask = batch(targets, TARGETS[side])
        encoded = encoder(x, source_mask, output_hidden_states=True)
        decoded = decoder(
            y, target_mask, encoded, source_mask, None, True, output_attentions=want_weights
        )
        for hidden in encoded.hidden_states:
            assert (hidden[source_mask == 0] == 0).all()
        for hidden in decoded.hidden_states:
            assert (hidden[target_mask == 0] == 0).all()
        assert (encoded.final_states[3] == 0).all()
        real = [encoded.last_hidden_state[source_mask == 1], encoded.final_states]
        real += [hidden[target_mask == 1] for hidden in decoded.hidden_states]
        if want_weights:
            for weights in decoded.cross_attentions:
                sums = weights.sum(-1).transpose(1, 2)[target_mask == 1]  # rows 0, 1, 2, then 3
                close(sums[:-1], torch.ones_like(sums[:-1]))
                assert (weights[3] == 0).all()
                assert (weights.movedim(3, 1)[source_mask == 0] == 0).all()
        found.append(real)
        losses.append(sum(part.square().sum() for part in real))

    alone: list[list[torch.Tensor]] = []
    for x, y in zip(sources, targets, strict=True):
        # The empty row alone is one pad: there is no softmax over no source at all.
        mask = None if len(x) else torch.zeros(1, 1)
        encoded = encoder(x[None] if len(x) else torch.full((1, 1, width), 9.0).double(), mask)
        decoded = decoder(y[None], None, encoded, mask, None, True, want_weights)
        rows = [encoded.last_hidden_state[0, : len(x)], encoded.final_states]
        alone.append([*rows, *(hidden[0] for hidden in decoded.hidden_states)])
    found.append([torch.cat(parts) for parts in zip(*alone, strict=True)])
    losses.append(sum(part.square().sum() for part in found[-1]))

    gradients = [parameters_gradients(loss, encoder, decoder) for loss in losses]
    for other in (1, 2):
        for a, b in zip(found[0], found[other], strict=True):
            close(a, b)
        for a, b in zip(gradients[0], gradients[other], strict=True):
            close(a, b, 1e-9)


@every_config
def test_empty_source_row_gives_the_encoder_no_gradient(fields: dict[str, Any]) -> None:
    encoder, decoder = build(small(**fields))
    width = small(**fields).embedding_size
    x = torch.randn(1, S, width).double().requires_grad_()
    mask = torch.zeros(1, S)
    y = torch.randn(1, T, width).double()
    for want_weights in (True, False):
        encoded = encoder(x, mask)
        h = decoder(y, None, encoded, mask, output_attentions=want_weights).last_hidden_state
        assert not h.isnan().any()
        leaves = [x, *encoder.parameters()]
        loss = h.square().sum() + encoded.last_hidden_state.sum()
        for grad in torch.autograd.grad(
            loss, leaves, allow_unused=True, materialize_grads=True, retain_graph=True
        ):
            assert (grad == 0).all()
        assert not any(g.isnan().any() for g in parameters_gradients(loss, decoder))


def test_both_ways_of_attending_agree() -> None:
    for fields in CONFIGS.values():
        encoder, decoder = build(small(**fields))
        width = small(**fields).embedding_size
        x, y = torch.randn(2, S, width).double(), torch.randn(2, T, width).double()
        mask = torch.tensor([[1] * S, [0] * 2 + [1] * 4])
        encoded = encoder(x, mask)
        close(
            decoder(y, None, encoded, mask, output_attentions=True).last_hidden_state,
            decoder(y, None, encoded, mask, output_attentions=False).last_hidden_state,
        )


# ------------------------------------------------------------------ order in time


@every_config
def test_decoder_does_not_look_ahead(fields: dict[str, Any]) -> None:
    encoder, decoder = build(small(**fields))
    width = small(**fields).embedding_size
    encoded = encoder(torch.randn(1, S, width).double())
    y = torch.randn(1, T, width).double().requires_grad_()
    h = decoder(y, None, encoded).last_hidden_state
    for t in range(T):
        (grad,) = torch.autograd.grad(h[0, t].square().sum(), y, retain_graph=True)
        assert (grad[:, t + 1 :] == 0).all()
        assert (grad[:, : t + 1] != 0).any(-1).all()
        shorter = decoder(y[:, : t + 1], None, encoded).last_hidden_state
        close(shorter, h[:, : t + 1])


@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("kernel_sizes", [1, [4, 2, 3], 6], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "bidirectional"])
def test_reverse_source_flips_the_real_row_and_nothing_else(
    bidirectional: bool, kernel_sizes: Any, causal: bool
) -> None:
    fields = {
        "encoder_causal": causal,
        "encoder_kernel_sizes": kernel_sizes,
        "encoder_bidirectional": bidirectional,
    }
    backward, _ = build(small(**fields, reverse_source=True))
    forward, _ = build(small(**fields, reverse_source=False))
    x, mask = torch.randn(2, S, E).double(), torch.tensor([[1] * S, [1] * 3 + [0] * 3])
    got = backward(x, mask, output_hidden_states=True)
    flipped = forward(x.flip(1), mask.flip(1), output_hidden_states=True)
    for ours, theirs in zip(got.hidden_states, flipped.hidden_states, strict=True):
        close(ours, theirs.flip(1))
    close(got.final_states, flipped.final_states)


def test_encoder_outputs_are_in_source_order() -> None:
    # k = 1 and f = 0: step s of the output depends on step s of the source alone.
    for reverse in (False, True):
        encoder, _ = build(small(encoder_kernel_sizes=1, reverse_source=reverse))
        for layer in encoder.layers:
            convolution = layer.directions[0].convolution
            with torch.no_grad():
                convolution.weight[H : 2 * H] = 0.0
                convolution.bias[H : 2 * H] = -1000.0
        x = torch.randn(1, S, E).double().requires_grad_()
        h = encoder(x).last_hidden_state
        for s in range(S):
            (grad,) = torch.autograd.grad(h[0, s].sum(), x, retain_graph=True)
            assert [u for u in range(S) if (grad[0, u] != 0).any()] == [s]


@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
def test_causal_encoder_sees_only_what_was_processed(causal: bool) -> None:
    encoder, _ = build(small(encoder_causal=causal))
    x = torch.randn(1, S, E).double().requires_grad_()
    (grad,) = torch.autograd.grad(encoder(x).last_hidden_state[0, 3].sum(), x)
    # Read from the last token to the first: 5, 4 and 3 come before 2.
    assert (grad[0, 3:] != 0).any(-1).all()
    assert (grad[0, :3] == 0).all() == causal


# ------------------------------------------------------------------ h~


@every_config
def test_final_states_are_every_layers_own_pooled_output(fields: dict[str, Any]) -> None:
    encoder, _ = build(small(**fields, dropout=0.5))
    encoder.train()
    width = small(**fields).embedding_size
    pooled: dict[tuple[int, int], torch.Tensor] = {}

    def record(layer: int, direction: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            pooled[layer, direction] = output.h

        return hook

    for index, layer in enumerate(encoder.layers):
        for way, direction in enumerate(layer.directions):
            direction.register_forward_hook(record(index, way))
    x, mask = torch.randn(2, S, width).double(), torch.tensor([[1] * S, [0, 1, 1, 1, 0, 0]])
    final = encoder(x, mask).final_states
    assert final.shape == (2, 3, H)
    first, last = [0, 1], [S - 1, 3]
    for index, layer in enumerate(encoder.layers):
        ends = []
        for way, direction in enumerate(layer.directions):
            # Forward, the last processed step is the last of the row; backward, its first.
            steps = first if direction.reverse else last
            ends.append(torch.stack([pooled[index, way][b, steps[b]] for b in range(2)]))
        assert torch.equal(final[:, index], torch.cat(ends, dim=-1))
    reverse = small(**fields).reverse_source
    ways = [reverse, not reverse] if small(**fields).encoder_bidirectional else [reverse]
    for layer in encoder.layers:
        assert [direction.reverse for direction in layer.directions] == ways


@pytest.mark.parametrize(("encoder_layers", "decoder_layers"), [(4, 2), (3, 3), (2, 1)])
def test_h_tilde_goes_to_the_decoder_layer_of_the_same_height(
    encoder_layers: int, decoder_layers: int
) -> None:
    config = small(
        encoder_layers=encoder_layers, decoder_layers=decoder_layers, encoder_kernel_sizes=2
    )
    _, decoder = build(config)
    states = torch.randn(1, S, H).double()
    finals = torch.randn(1, encoder_layers, H).double()
    y = torch.randn(1, T, E).double()

    def outputs(finals: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded = QRNNEncoderOutput(last_hidden_state=states, final_states=finals)
        return decoder(y, None, encoded, output_hidden_states=True).hidden_states[1:]

    wanted = outputs(finals)
    skipped = encoder_layers - decoder_layers
    for layer in range(encoder_layers):
        poisoned = finals.clone()
        poisoned[:, layer] = torch.nan
        for index, (got, clean) in enumerate(zip(outputs(poisoned), wanted, strict=True)):
            reader = layer - skipped
            if reader < 0 or index < reader:
                assert torch.equal(got, clean)
            else:
                assert got.isnan().all()


def test_encoder_layer_adds_what_stands_around_it_once() -> None:
    x = torch.randn(2, S, H).double()
    dense, _ = build(small(dense_connections=True, embedding_size=H))
    hidden = dense(x, output_hidden_states=True).hidden_states
    # Section 2.2: input and output side by side; of the last layer the output alone.
    assert [h.shape[-1] for h in hidden] == [H, 2 * H, 3 * H, H]
    own = dense.layers[0].directions[0](x).h
    close(hidden[1], torch.cat([x, own], dim=-1))
    close(hidden[2][..., : 2 * H], hidden[1])
    residual, _ = build(small(residual=True, embedding_size=H))
    hidden = residual(x, output_hidden_states=True).hidden_states
    close(hidden[1], x + residual.layers[0].directions[0](x).h)
    normed, _ = build(small(residual=True, rms_norm=True, embedding_size=H))
    out = normed(x, output_hidden_states=True)
    stream = x
    for layer in normed.layers:
        stream = stream + layer.directions[0](layer.connection.norm(stream)).h
    close(out.last_hidden_state, normed.norm(stream))
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


def test_embedding_dropout_defaults_to_dropout() -> None:
    for fields, wanted in (
        ({"dropout": 0.25}, 0.25),
        ({"dropout": 0.25, "embedding_dropout": 0.5}, 0.5),
        ({"dropout": 0.25, "embedding_dropout": 0.0}, 0.0),
    ):
        encoder, decoder = build(small(**fields))
        assert encoder.dropout.p == decoder.dropout.p == wanted
        assert encoder.layers[0].connection.dropout.p == 0.25


def test_attention_stands_where_the_config_says() -> None:
    _, decoder = build(small())
    assert [layer.attention is not None for layer in decoder.layers] == [False, True]
    _, decoder = build(small(attention_layers="all"))
    assert [type(layer.attention).__name__ for layer in decoder.layers] == ["AttentionBlock"] * 2
    alone = QRNNDecoder(small(), reads_source=False)
    names = [name for name, _ in alone.named_parameters()]
    assert not [name for name in names if "attention" in name or "encoding" in name]


def test_layers_take_their_plain_numbers_from_the_config() -> None:
    config = small(zoneout=0.25, pooling="ifo", encoder_causal=False, decoder_kernel_sizes=[3, 1])
    encoder, decoder = build(config)
    layers = [m for m in encoder.modules() if isinstance(m, QRNNLayer)]
    assert [layer.kernel_size for layer in layers] == [4, 2, 3]
    assert not any(layer.causal for layer in layers)
    layers = [m for m in decoder.modules() if isinstance(m, QRNNLayer)]
    assert [layer.kernel_size for layer in layers] == [3, 1]
    assert all(layer.causal and not layer.reverse for layer in layers)
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, QRNNLayer):
            assert (module.zoneout, module.pooling) == (0.25, "ifo")


# ------------------------------------------------------------------ masks and mistakes


def test_mask_with_a_hole_is_refused_by_row() -> None:
    encoder, decoder = build(small())
    mask = torch.tensor([[1] * S, [0, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"must be one run of ones .* row 2 has a hole"):
        encoder(torch.randn(3, S, E).double(), mask)
    encoded = encoder(torch.randn(3, S, E).double())
    with pytest.raises(ValueError, match="row 2 has a hole"):
        decoder(torch.randn(3, S, E).double(), mask, encoded)
    with pytest.raises(ValueError, match="row 2 has a hole"):
        decoder(torch.randn(3, T, E).double(), None, encoded, mask)


@pytest.mark.parametrize("shape", [(2, S - 1), (2, S, 1), (S,)], ids=str)
def test_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    encoder, _ = build(small())
    with pytest.raises(ValueError, match=r"`attention_mask` must be \(2, 6\)"):
        encoder(torch.randn(2, S, E).double(), torch.ones(shape))


def test_mask_of_another_batch_is_refused() -> None:
    encoder, _ = build(small())
    mask = torch.tensor([[1] * S] * 2 + [[0] + [1] * (S - 1)])
    with pytest.raises(ValueError, match=r"`attention_mask` must be \(2, 6\), but is \(3, 6\)"):
        encoder(torch.randn(2, S, E).double(), mask)


@pytest.mark.filterwarnings("ignore")  # of the tracer
def test_mask_of_ones_is_no_constant_of_a_traced_model() -> None:
    sizes = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 8}
    model = QRNNForSequenceClassification(QRNNConfig(**sizes)).eval()
    model.config.return_dict = False
    ids, mask = torch.randint(20, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
    traced = torch.jit.trace(model, (ids, mask))
    mask[0, 3:] = 0
    torch.testing.assert_close(traced(ids, mask)[0], model(ids, mask)[0])


def test_masks_without_numbers_are_masks() -> None:
    with FakeTensorMode():
        mask = real_steps(torch.ones(2, 4), 3, 2)
    assert mask is not None
    assert mask.shape == (2, 3)


def test_real_steps_is_the_end_of_the_mask_or_none() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])
    assert real_steps(None, 4) is None
    assert real_steps(torch.ones(2, 4), 4) is None
    assert real_steps(mask, 1) is None
    assert torch.equal(real_steps(mask, 3), mask[:, 1:].bool())
    assert torch.equal(real_steps(mask, 4), mask.bool())


def test_fewer_encoder_than_decoder_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="`encoder_layers` must be at least `decoder_layers`"):
        small(encoder_layers=1, encoder_kernel_sizes=2)
