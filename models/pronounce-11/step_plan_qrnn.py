"""Tells whether a step of a decoder may be done without calling its modules, and by what.

A module may be hooked, changed or replaced at any time: an adapter takes its place, it is
quantised, compiled, put into training. So everything is asked at every step. To ask each module in
turn takes longer than the step of a small model; a `StepPlan` asks once, and then compares what it
has seen with what is there, all modules together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .attention_qrnn import AttentionBlock, OutputAttention
from .backends_qrnn import choose, pooling_number, step_operation
from .blocks_qrnn import Connection, FeedForward
from .cache_qrnn import QRNNCache, QRNNCacheLayer
from .connect_qrnn import Dropout, LockedDropout, is_plain_dropout
from .decoder_qrnn import QRNNDecoder, QRNNDecoderLayer
from .internals_qrnn import (
    has_global_hooks,
    hooks_of,
    is_untouched,
    runs_eagerly,
    tables_of,
)
from .layers_qrnn import QRNNLayer

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What a step reads of a module beside its weights, by the module's class.
_SETTINGS: dict[type[nn.Module], itemgetter[Any]] = {
    nn.Embedding: itemgetter("max_norm"),
    nn.RMSNorm: itemgetter("eps"),
    Dropout: itemgetter("training", "p"),
    LockedDropout: itemgetter("training", "p"),
    Connection: itemgetter("residual"),
    OutputAttention: itemgetter("num_heads", "scale"),
    AttentionBlock: itemgetter("num_heads", "scale"),
    QRNNLayer: itemgetter("training", "zoneout", "pooling", "pool_backend", "hidden_size"),
    QRNNDecoderLayer: itemgetter("attends_inside", "dense"),
    QRNNDecoder: itemgetter("reads_source"),
}
# They are at work once a source, not once a step.
_OF_THE_SOURCE = ("encoding", "key_value")
# What a layer has, as `enum StepPart` of kernels/csrc/step_stack.h numbers it.
_BIAS, _NORM, _RESIDUAL, _DENSE, _GATE_BIAS, _INSIDE, _BEHIND, _FEEDS = (1 << n for n in range(8))


class StepPlan:
    """A model whose decoder's step may be done without calling a module, and how.

    Attributes:
        embedding, layers, norm: The modules.
        operation: The native library's `decoder_step`; None where torch makes the step.
        weights, layout, numbers: What the operation is told of the modules.
    """

    def __init__(self, base: Any) -> None:
        decoder = base.decoder
        self.operation: Callable[..., list[torch.Tensor]] | None = None
        self.embedding: nn.Embedding = base.shared
        self.layers: list[Any] = list(decoder.layers)
        self.norm: nn.Module = decoder.norm
        self.reads_source: bool = decoder.reads_source
        self._watch(vars(base), [self.embedding, *_modules_of(decoder)])
        self.weights: list[torch.Tensor] = []
        self.layout: list[int] = []
        self.numbers: list[float] = []
        for layer in self.layers:
            self._add(layer)
        if isinstance(self.norm, nn.RMSNorm):
            self.numbers.append(self._add_norm(self.norm))
        # Which code pools is asked at every step, of each kind once.
        self._poolings = {(x.layer.pool_backend, x.layer.pooling) for x in self.layers}

    # ------------------------------------------------------------------ is all as it was

    def _watch(self, base: dict[str, Any], modules: list[nn.Module]) -> None:
        """Keep what must stay as it is; of the model its `vars`, so that it is not kept alive."""
        self._seen = modules
        self._kinds = [type(module) for module in modules]
        self._attributes = [base, *map(vars, modules)]
        self._hooks = [hooks for own in self._attributes for hooks in hooks_of(own)]
        self._tables = [table for own in self._attributes for table in tables_of(own)]
        # Kept, so that nothing else gets their numbers.
        self._contents = list(chain.from_iterable(map(dict.values, self._tables)))
        self._ids = list(map(id, self._contents))
        self._settings = [
            (_SETTINGS[type(module)], vars(module))
            for module in modules
            if type(module) in _SETTINGS
        ]
        self._settings_then = self._read_settings()

    def _read_settings(self) -> list[Any]:
        return [read(own) for read, own in self._settings]

    def is_current(self) -> bool:
        """Tell whether every module is what it was, and nobody listens."""
        return (
            not has_global_hooks()
            and not any(self._hooks)
            and list(map(type, self._seen)) == self._kinds
            and list(map(id, chain.from_iterable(map(dict.values, self._tables)))) == self._ids
            and self._read_settings() == self._settings_then
            and not any("forward" in own for own in self._attributes)
        )

    # ------------------------------------------------------------------ the native operation

    def _add(self, layer: Any) -> None:
        """Say what a layer is made of, in the order in which the operation reads it."""
        qrnn, connection, attention = layer.layer, layer.connection, layer.attention
        parts, eps, scale, eps_behind, eps_feed = 0, 0.0, 1.0, 0.0, 0.0
        if isinstance(connection.norm, nn.RMSNorm):
            parts |= _NORM
            eps = self._add_norm(connection.norm)
        self.weights.append(qrnn.convolution.weight)
        if qrnn.convolution.bias is not None:
            parts |= _BIAS
            self.weights.append(qrnn.convolution.bias)
        if qrnn.encoding is not None:
            parts |= _GATE_BIAS
        if attention is not None:
            scale = float(attention.scale)
        if layer.attends_inside:
            parts |= _INSIDE
            self.weights += [attention.context.weight, attention.cell.weight]
        elif attention is not None:
            parts |= _BEHIND
            eps_behind = self._add_norm(attention.norm)
            self.weights += [attention.query.weight, attention.out.weight]
        if layer.feed_forward is not None:
            parts |= _FEEDS
            eps_feed = self._add_norm(layer.feed_forward.norm)
            self.weights += [layer.feed_forward.gate_and_in.weight, layer.feed_forward.out.weight]
        parts |= (_RESIDUAL if connection.residual else 0) | (_DENSE if layer.dense else 0)
        heads = 0 if attention is None else attention.num_heads
        self.layout += [pooling_number(qrnn.pooling), parts, heads]
        self.numbers += [eps, scale, eps_behind, eps_feed]

    def _add_norm(self, norm: Any) -> float:
        self.weights.append(norm.weight)
        return float(norm.eps)

    def choose_operation(self) -> None:
        """Set `operation`, by what is asked for now."""
        weight = self.embedding.weight
        dtype, device = weight.dtype, weight.device
        natively = all(
            choose(wanted, device, dtype, pooling).name == "native"
            for wanted, pooling in self._poolings
        )
        # A norm that was left in float32, say.
        alike = all(w.dtype is dtype and w.device == device for w in self.weights)
        self.operation = step_operation() if natively and alike else None


# By identity, and no longer than the model.
_PLANS: WeakKeyDictionary[nn.Module, StepPlan] = WeakKeyDictionary()


def plan_step(
    base: Any, kind: type[nn.Module], token_ids: torch.Tensor, cache: Any
) -> StepPlan | None:
    """Return how to do an ordinary step of generate() by modules of ours; None if it is another.

    Args:
        base: A model without its head.
        kind: Its class, if nobody has changed it.
        token_ids: Its input (R, 1).
        cache: Its `past_key_values`.
    """
    if (
        type(cache) is not QRNNCache
        or torch.is_grad_enabled()
        # Before all that looks at sizes, which are no numbers to a compiler.
        or not runs_eagerly(token_ids)
        or token_ids.device.type not in ("cpu", "cuda")
        or token_ids.dim() != 2
        or token_ids.shape[1] != 1
        or token_ids.is_floating_point()
        or torch.is_autocast_enabled(token_ids.device.type)
        or type(base) is not kind
    ):
        return None
    plan = _PLANS.get(base)
    if plan is None or not plan.is_current():
        if not _is_plain(base, kind):
            return None
        try:
            plan = _PLANS[base] = StepPlan(base)
        except KeyError:  # a torch that keeps modules, parameters or hooks elsewhere
            return None
    if not _goes_on(cache, token_ids, plan):
        return None
    plan.choose_operation()
    # A GPU waits for Python: its modules are few calls too, by kernels of their own.
    return plan if plan.operation is not None or token_ids.device.type == "cpu" else None


def _goes_on(cache: QRNNCache, token_ids: torch.Tensor, plan: StepPlan) -> bool:
    """Tell whether a cache holds a state of as many rows for every layer."""
    like = plan.embedding.weight
    rows, dtype, device = token_ids.shape[0], like.dtype, like.device
    if rows == 0 or token_ids.device != device or len(cache.layers) != len(plan.layers):
        return False
    state_dtype = torch.promote_types(dtype, torch.float32)
    for kept in cache.layers:
        if type(kept) is not QRNNCacheLayer or not kept.is_initialized:
            return False
        c, keys = kept.c, kept.source_keys
        if c is None or c.shape[0] != rows or c.dtype is not state_dtype or c.device != device:
            return False
        for x in (kept.inputs, kept.gate_bias, keys):
            if x is not None and (x.dtype is not dtype or x.device != device):
                return False
        if kept.has_memory != plan.reads_source or (keys is not None and rows % keys.shape[0]):
            return False
    return True


# ------------------------------------------------------------------ what is plain


def _modules_of(module: nn.Module) -> Iterator[nn.Module]:
    """Give `module` and what is at work in it in a step."""
    yield module
    for name, child in module.named_children():
        if name not in _OF_THE_SOURCE:
            yield from _modules_of(child)


def _is_plain(base: Any, kind: type[nn.Module]) -> bool:
    """Tell whether the modules of a step are ours, and nobody listens."""
    return (
        is_untouched(base, kind)
        and _is_plain_embedding(base.shared)
        and is_untouched(base.decoder, QRNNDecoder)
        and _is_idle(base.decoder.dropout)
        and all(_is_plain_layer(layer) for layer in base.decoder.layers)
        and _is_plain_norm(base.decoder.norm)
    )


def _is_plain_embedding(embedding: nn.Module) -> bool:
    return (
        is_untouched(embedding, nn.Embedding)
        and embedding.max_norm is None
        and embedding.weight.dtype in _DTYPES
    )


def _is_idle(dropout: Any) -> bool:
    return is_plain_dropout(dropout) and not (dropout.training and dropout.p > 0.0)


def _is_plain_norm(norm: nn.Module) -> bool:
    if type(norm) is nn.Identity:
        return is_untouched(norm, nn.Identity)
    return is_untouched(norm, nn.RMSNorm) and norm.weight is not None and norm.eps is not None


def _is_plain_layer(layer: Any) -> bool:
    """Tell whether a layer of the decoder and everything in it is ours, and nobody listens."""
    if not is_untouched(layer, QRNNDecoderLayer):
        return False
    qrnn, connection = layer.layer, layer.connection
    return (
        is_untouched(qrnn, QRNNLayer)
        and not (qrnn.training and qrnn.zoneout > 0.0)
        and is_untouched(qrnn.convolution, nn.Linear)
        and is_untouched(connection, Connection)
        and _is_plain_norm(connection.norm)
        and _is_idle(connection.dropout)
        and _is_plain_attention(layer.attention)
        and _is_plain_feed_forward(layer.feed_forward)
    )


def _is_plain_attention(attention: Any) -> bool:
    if attention is None:
        return True
    if type(attention) is OutputAttention:
        return (
            is_untouched(attention, OutputAttention)
            and is_untouched(attention.context, nn.Linear)
            and is_untouched(attention.cell, nn.Linear)
        )
    return (
        is_untouched(attention, AttentionBlock)
        and _is_plain_norm(attention.norm)
        and is_untouched(attention.query, nn.Linear)
        and is_untouched(attention.out, nn.Linear)
        and _is_idle(attention.dropout)
    )


def _is_plain_feed_forward(block: Any) -> bool:
    return block is None or (
        is_untouched(block, FeedForward)
        and _is_plain_norm(block.norm)
        and is_untouched(block.gate_and_in, nn.Linear)
        and is_untouched(block.out, nn.Linear)
        and _is_idle(block.dropout)
    )
