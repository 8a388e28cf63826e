"""hf_qrnn.attention_qrnn: Eq. 8 by a plain loop, pads, both ways to compute it."""

import numpy
import pytest
import torch
from torch import nn

from hf_qrnn.attention_qrnn import AttentionBlock, Memory, OutputAttention, attend, split_heads

pytestmark = pytest.mark.usefixtures("nan_memory")

H = 4
SOURCE_MASK = [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]


def source(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder states (4, 5, H), zero at pads as the encoder leaves them, and their mask."""
    mask = torch.tensor(SOURCE_MASK).bool()
    states = torch.randn(4, 5, width).double().masked_fill(~mask[..., None], 0.0)
    return states, mask


def attend_by_loop(
    queries: numpy.ndarray, keys: numpy.ndarray, values: numpy.ndarray, heads: int, scale: float
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Contexts (B, T, H) and weights (B, N, T, S) of SOURCE_MASK, one number after another."""
    batch, length, width = queries.shape
    contexts = numpy.zeros((batch, length, width))
    weights = numpy.zeros((batch, heads, length, keys.shape[1]))
    for b in range(batch):
        real = [s for s, one in enumerate(SOURCE_MASK[b]) if one]
        for n in range(heads):
            part = slice(n * width // heads, (n + 1) * width // heads)
            for t in range(length):
                scores = [scale * float(queries[b, t, part] @ keys[b, s, part]) for s in real]
                total = sum(numpy.exp(score) for score in scores)
                for s, score in zip(real, scores, strict=True):
                    alpha = numpy.exp(score) / total
                    weights[b, n, t, s] = alpha
                    contexts[b, t, part] += alpha * values[b, s, part]
    return contexts, weights


def arrays(*tensors: torch.Tensor) -> list[numpy.ndarray]:
    return [x.detach().numpy() for x in tensors]


@pytest.mark.parametrize("want_weights", [True, False], ids=["weights", "sdpa"])
@pytest.mark.parametrize(("heads", "scaling"), [(1, False), (1, True), (2, False), (4, True)])
def test_output_attention_is_equation_8(heads: int, scaling: bool, want_weights: bool) -> None:
    attention = OutputAttention(H, heads, scaling=scaling).double()
    states, mask = source(H)
    c, o = torch.randn(4, 3, H).double(), torch.rand(4, 3, H).double()
    memory = Memory(None, *attention.keys_values(states))
    h, weights = attention(c, o, memory, mask, want_weights)
    scale = (H // heads) ** -0.5 if scaling else 1.0
    c_, states_, o_ = arrays(c, states, o)
    k, alpha = attend_by_loop(c_, states_, states_, heads, scale)
    w_k, w_c = arrays(attention.context.weight, attention.cell.weight)
    inner = k @ w_k.T + c_ @ w_c.T
    numpy.testing.assert_allclose(h.detach().numpy(), o_ * inner, rtol=1e-10, atol=1e-12)
    assert (weights is None) != want_weights
    if weights is not None:
        numpy.testing.assert_allclose(weights.detach().numpy(), alpha, rtol=1e-10, atol=1e-12)
    # f-pooling has no o.
    bare, _ = attention(c, None, memory, mask, want_weights)
    numpy.testing.assert_allclose(bare.detach().numpy(), inner, rtol=1e-10, atol=1e-12)
    assert attention.context.bias is None
    assert attention.cell.bias is None


@pytest.mark.parametrize("want_weights", [True, False], ids=["weights", "sdpa"])
@pytest.mark.parametrize(("heads", "scaling"), [(1, False), (2, True)])
def test_attention_block_is_prenorm_and_residual(
    heads: int, scaling: bool, want_weights: bool
) -> None:
    block = AttentionBlock(H, heads, scaling=scaling, dropout=0.0).double()
    nn.init.normal_(block.norm.weight)
    states, mask = source(H)
    x = torch.randn(4, 3, H).double()
    got, _ = block(x, Memory(None, *block.keys_values(states)), mask, want_weights)
    x_, states_, gain, w_q, w_kv, w_out = arrays(
        x, states, block.norm.weight, block.query.weight, block.key_value.weight, block.out.weight
    )
    normed = gain * x_ / numpy.sqrt((x_**2).mean(-1, keepdims=True) + 1e-6)
    scale = (H // heads) ** -0.5 if scaling else 1.0
    context, _ = attend_by_loop(
        normed @ w_q.T, states_ @ w_kv[:H].T, states_ @ w_kv[H:].T, heads, scale
    )
    wanted = x_ + context @ w_out.T
    numpy.testing.assert_allclose(got.detach().numpy(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_attention_weights_sum_to_one_and_are_zero_at_pads(dtype: torch.dtype) -> None:
    states, mask = source(H)
    heads = split_heads(states.to(dtype), 2)
    query = split_heads(30 * torch.randn(4, 3, H).to(dtype), 2)
    _, weights = attend(query, heads, heads, mask, scale=1.0, want_weights=True)
    assert weights.shape == (4, 2, 3, 5)
    assert (weights.transpose(1, 3)[~mask] == 0).all()
    sums = weights.double().sum(-1)
    one = torch.ones_like(sums[:3])
    torch.testing.assert_close(sums[:3], one, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert (sums[3] == 0).all()


def test_empty_source_gives_zeros_and_finite_gradients_on_both_paths() -> None:
    states, mask = source(H)
    results = []
    for want_weights in (True, False):
        values = states.clone().requires_grad_()
        query = torch.linspace(-9, 9, 4 * 3 * H).double().view(4, 3, H).requires_grad_()
        keys = split_heads(values, 2)
        context, _ = attend(
            split_heads(query, 2), keys, keys, mask, scale=1.0, want_weights=want_weights
        )
        assert (context[3] == 0).all()
        grads = torch.autograd.grad(context.square().sum(), (query, values))
        assert (grads[0][3] == 0).all()
        assert (grads[1][~mask] == 0).all()
        results.append((context, *grads))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
