"""Attention over the encoder's states (Eq. 8 of arXiv 1611.01576), and the block of many heads.

Nothing here knows a config: modules take plain numbers.

Shapes: B batch, T time, S source length, H units, G gates, N attention heads. R rows may share the
keys and values of B sources: the R / B rows of a source, its beams, are neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .connect_qrnn import join, make_dropout, normalize
from .products_qrnn import apply_linear

RMS_NORM_EPS = 1e-6
# With more weights than these, 128 MiB of bfloat16, fused attention is worth its time.
MOST_WEIGHTS = 2**26

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")


def attention_implementation(given: object) -> str:
    """Return `given`, or "sdpa" for None.

    Raises:
        ValueError: If there is no such implementation here.
    """
    if given is None:
        return "sdpa"
    if isinstance(given, str) and given in ATTENTION_IMPLEMENTATIONS:
        return given
    raise ValueError(
        # So far as transformers says it too, whose own tests look for it.
        f'Specified `attn_implementation="{given}"` is not supported: '
        f"it must be 'sdpa' or 'eager', but is {given!r}."
    )


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float,
    want_weights: bool,
    explicit: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend to the source softly, by heads.

    Args:
        query: (R, N, T, H/N).
        keys, values: (B, N, S, H/N).
        mask: (B, S) boolean, true where the source is real; or (R, S). A row without a real step
            sees zeros, since its values are zeros.
        scale: Factor on the scores; 1 in the paper.
        want_weights: Return the weights too, (R, N, T, S).
        explicit: Compute by products and a softmax, which can be differentiated twice, in place of
            torch's fused attention.

    Returns:
        Context (R, T, H) and the weights or None.
    """
    if not (want_weights or explicit):
        bias = None if mask is None else pad_bias(mask, query.dtype)
        return context_of(query, keys, values, bias, scale), None
    each = rows_each(query, keys)
    if each > 1:
        query = _by_source(query, each)  # (B, N, R/B * T, H/N)
    scores = query @ keys.transpose(-1, -2) * scale  # (B, N, R/B * T, S)
    if mask is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        pads = ~source_rows(mask, keys)[:, None, None]  # (B, 1, 1, S)
        weights = torch.softmax(scores.masked_fill(pads, _lowest(query.dtype)), dim=-1)
        weights = weights.masked_fill(pads, 0.0)
    context = weights @ values
    if each > 1:
        context, weights = _by_row(context, each), _by_row(weights, each)  # (R, N, T, .)
    # The context is (R, T, H).
    return context.transpose(1, 2).flatten(2), weights if want_weights else None


def context_of(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Return what `attend` finds, (R, T, H), without weights; `bias` is that of `pad_bias`."""
    each = rows_each(query, keys)
    if each > 1:
        query = _by_source(query, each)  # (B, N, R/B * T, H/N)
    if bias is not None:
        bias = source_rows(bias, keys)
    if _goes_by_products(query, keys):
        context = _attend_by_products(query, keys, values, bias, scale)
    else:
        context = nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=bias, scale=scale
        )
    if each > 1:
        context = _by_row(context, each)  # (R, N, T, H/N)
    return context.transpose(1, 2).flatten(2)


def pad_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what the scores of attention are changed by, (B, 1, 1, S), where `mask` (B, S)."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, _lowest(dtype))[:, None, None]


def _lowest(dtype: torch.dtype) -> float:
    # The lowest finite number, not -inf: a row without a real step must not become NaN.
    return torch.finfo(dtype).min


def rows_each(query: torch.Tensor, keys: torch.Tensor) -> int:
    """Count the rows of `query` (R, ...) that attend to one source of `keys` (B, ...)."""
    # In an exported program rows and sources are of one size, which no comparison may pin down.
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return 1
    rows, sources = query.shape[0], keys.shape[0]
    return 1 if rows == sources else rows // sources


def source_rows(mask: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return the rows of `mask` (B or R, ...) that belong to those of `keys` (B or R, ...)."""
    each = rows_each(keys, mask)
    if each > 1:
        return mask.repeat_interleave(each, dim=0)
    return mask[:: rows_each(mask, keys)]


def _by_source(x: torch.Tensor, each: int) -> torch.Tensor:
    """Put the steps of a source's rows one after another: (R, N, T, .) to (B, N, R/B * T, .)."""
    return x.unflatten(0, (-1, each)).transpose(1, 2).flatten(2, 3)


def _by_row(x: torch.Tensor, each: int) -> torch.Tensor:
    """Undo `_by_source`."""
    return x.unflatten(2, (each, -1)).transpose(1, 2).flatten(0, 1)


def _goes_by_products(query: torch.Tensor, keys: torch.Tensor) -> bool:
    """Tell whether two products and a softmax are faster than torch's fused attention.

    In bfloat16 on a CPU that one's backward takes six times as long (66 by 76 steps, heads of 64),
    at 300 steps three times.
    """
    if query.device.type != "cpu" or query.dtype is not torch.bfloat16:
        return False
    # First of all: to a compiler a size is not a number to compare.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    return query[..., 0].numel() * keys.shape[2] <= MOST_WEIGHTS


def _attend_by_products(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Compute the context (B, N, T, H/N); `bias` (B, 1, 1, S) is added to the scores."""
    batch, heads = query.shape[:2]
    query, keys, values = (x.flatten(0, 1) for x in (query, keys, values))  # (B*N, ., H/N)
    if bias is None:
        scores = torch.bmm(query * scale, keys.transpose(1, 2))  # (B*N, T, S)
    else:
        bias = bias.expand(-1, heads, -1, -1).flatten(0, 1)  # (B*N, 1, S)
        scores = torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=scale)
    context = torch.bmm(torch.softmax(scores, dim=-1), values)
    return context.unflatten(0, (batch, heads))


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Split (B, T, H) into heads (B, N, T, H/N)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class Memory(NamedTuple):
    """Tensors that one decoder layer keeps of the source, computed once per source.

    `gate_bias` is V h~ (R, G*H) of Eq. 7; `keys` and `values` (B, N, S, H/N) where it attends.
    """

    gate_bias: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None


class OutputAttention(nn.Module):
    """The attention of the paper, inside the last decoder layer (Eq. 8).

        alpha_st = softmax_s(c_t . h~_s)
        k_t = sum_s alpha_st h~_s
        h_t = o_t . (W_k k_t + W_c c_t)

    Paper: one head, no scale, o always there. Here: both are options, and f-pooling has no o.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, scaling: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (hidden_size // num_heads) ** -0.5 if scaling else 1.0
        self.context = nn.Linear(hidden_size, hidden_size, bias=False)  # W_k
        self.cell = nn.Linear(hidden_size, hidden_size, bias=False)  # W_c

    def keys_values(self, encoder_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return encoder states (B, S, H) as keys and values (B, N, S, H/N)."""
        heads = split_heads(encoder_states, self.num_heads)
        return heads, heads

    def forward(
        self,
        c: torch.Tensor,
        o: torch.Tensor | None,
        memory: Memory,
        mask: torch.Tensor | None,
        want_weights: bool,
        explicit: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map `c` and `o` (B, T, H) to the attended `h` (B, T, H) and the weights (B, N, T, S)."""
        assert memory.keys is not None, "no source to attend to"
        assert memory.values is not None
        c = c.to(memory.keys.dtype)
        k, weights = attend(
            split_heads(c, self.num_heads),
            memory.keys,
            memory.values,
            mask,
            scale=self.scale,
            want_weights=want_weights,
            explicit=explicit,
        )
        h = apply_linear(self.context, k) + apply_linear(self.cell, c)
        return h if o is None else o * h, weights


class AttentionBlock(nn.Module):
    """Pre-norm residual multi-head attention over the encoder's states, behind a decoder layer."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        scaling: bool,
        dropout: float,
        locked: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (hidden_size // num_heads) ** -0.5 if scaling else 1.0
        self.norm = nn.RMSNorm(hidden_size, eps=RMS_NORM_EPS)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.dropout = make_dropout(dropout, locked=locked)

    def keys_values(self, encoder_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project encoder states (B, S, H) to keys and values (B, N, S, H/N)."""
        keys, values = apply_linear(self.key_value, encoder_states).chunk(2, dim=-1)
        return split_heads(keys, self.num_heads), split_heads(values, self.num_heads)

    def forward(
        self,
        x: torch.Tensor,
        memory: Memory,
        mask: torch.Tensor | None,
        want_weights: bool,
        explicit: bool = False,
        *,
        normed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map `x` (B, T, H) to (B, T, H) and the weights (B, N, T, S).

        `normed` is `self.norm(x)` where that has been computed.
        """
        assert memory.keys is not None, "no source to attend to"
        assert memory.values is not None
        normed = normalize(self.norm, x) if normed is None else normed
        query = split_heads(apply_linear(self.query, normed), self.num_heads)
        context, weights = attend(
            query,
            memory.keys,
            memory.values,
            mask,
            scale=self.scale,
            want_weights=want_weights,
            explicit=explicit,
        )
        return join(x, apply_linear(self.out, context), self.dropout).out, weights
