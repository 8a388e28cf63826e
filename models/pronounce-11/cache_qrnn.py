"""The decoder's state between calls, as large after one step as after a thousand.

It is c and the last K-1 inputs of every layer, and what the layer needs of the source: V h~ of
Eq. 7, and the keys and values of Eq. 8. docs/cache.md shows its use.

Shapes: B batch, T time, E input channels, H units, K filter width, G gates, N heads, S source
length. Keys and values may have fewer rows: one a source, whose rows in the batch are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .attention_qrnn import Memory
from .internals_qrnn import mark_static_address, register_container
from .layers_qrnn import LayerPast, LayerState

Tensors = TypeVar("Tensors", LayerState, Memory, LayerPast)
RowChange = Callable[[torch.Tensor], torch.Tensor]


def _on_each(change: RowChange, tensors: Tensors) -> Tensors:
    """Change every tensor of a named tuple once, the same tensor under two names too."""
    changed: list[Any] = []
    for index, tensor in enumerate(tensors):
        # By `is`: torch 2.11 compiles no id() of a tensor.
        same = next((i for i in range(index) if tensors[i] is tensor), None)
        if tensor is None:
            changed.append(None)
        elif same is None:
            changed.append(change(tensor))
        else:
            changed.append(changed[same])
    return type(tensors)(*changed)


class QRNNCacheLayer(CacheLayerMixin):
    """State of one decoder layer between calls.

    Every attribute is a tensor, None, a flag or a list of tuples of tensors: exporters look for
    tensors in them, by name and in this order, and rebuild no named tuple.

    Attributes:
        inputs, c: Its last K-1 inputs (B, K-1, E) and c (B, H); None before the first step.
        gate_bias, source_keys, source_values: What it needs of the source, where `has_memory`:
            V h~ (B, G*H), keys and values (B, N, S, H/N), or of each source once.
        num_steps: Steps taken so far, pads included: 0-d, so that no graph takes it for a constant,
            and on the CPU, so that nobody waits for it.
        record_past: Whether steps are kept so that `crop` can take them back.
    """

    # What transformers asks a layer of a cache. Only the static one below may be part of a compiled
    # step; `is_croppable` lets assisted decoding take back what was not accepted.
    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.inputs: torch.Tensor | None = None
        self.c: torch.Tensor | None = None
        self.gate_bias: torch.Tensor | None = None
        self.source_keys: torch.Tensor | None = None
        self.source_values: torch.Tensor | None = None
        self.num_steps = torch.zeros((), dtype=torch.int64, device="cpu")
        self.has_memory = False
        self.record_past = False
        # A `LayerPast`, as a plain tuple, for every call since recording began or `crop`.
        self._window: list[tuple[torch.Tensor | None, ...]] = []

    @property
    def state(self) -> LayerState | None:
        """The last K-1 inputs (B, K-1, E) and c (B, H); None before the first step."""
        if self.inputs is None or self.c is None:
            return None
        return LayerState(self.inputs, self.c)

    @property
    def memory(self) -> Memory | None:
        """The part of the source that the layer needs; None before it has seen one."""
        return self._kept_memory() if self.has_memory else None

    def _kept_memory(self) -> Memory:
        return Memory(self.gate_bias, self.source_keys, self.source_values)

    def _past(self) -> list[LayerPast]:
        return [LayerPast(*past) for past in self._window]  # type: ignore[arg-type]

    def _keep_state(self, state: LayerState) -> None:
        self.inputs, self.c = state

    def _keep_memory(self, memory: Memory | None) -> None:
        self.gate_bias, self.source_keys, self.source_values = memory or Memory()
        self.has_memory = memory is not None

    def current_state(self) -> LayerState | None:
        """Return the state to go on from, None before the first step."""
        return self.state

    def store(self, state: LayerState, num_steps: int, past: LayerPast | None = None) -> None:
        """Replace the state after `num_steps` more steps, recorded in `past`."""
        # A clone, since a state is a view of the call's tensors, which would all be kept with it.
        self._keep_state(_on_each(torch.clone, state))
        self.num_steps = self.num_steps + num_steps
        self.is_initialized = True
        if self.record_past:
            assert past is not None, "a layer that records needs every step's state"
            self._window.append(tuple(past))

    def advance(self, state: LayerState, past: LayerPast | None = None) -> None:
        """Replace the state after one more step, recorded in `past`; nobody else has `state`."""
        self._keep_state(state)
        self.num_steps = self.num_steps + 1
        if past is not None:
            self._window.append(tuple(past))

    def remember(self, memory: Memory) -> Memory:
        """Keep `memory` and return what is kept."""
        self._keep_memory(memory)
        return memory

    @property
    def num_rows(self) -> int:
        """B, or -1 before the first step."""
        return self.c.shape[0] if self.is_initialized and self.c is not None else -1

    def get_seq_length(self) -> Any:
        """Count the steps so far, pads included: an int, while a graph is traced a 0-d tensor."""
        return self.num_steps if torch.compiler.is_compiling() else int(self.num_steps)

    def get_mask_sizes(self, query_length: int) -> tuple[Any, int]:
        """Return length and offset of the mask of the next call."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return -1: no limit (the name of `get_max_length` in older releases of transformers)."""
        return -1

    def reset(self) -> None:
        """Forget everything, whether to record excepted."""
        self.inputs = self.c = None
        self._keep_memory(None)
        self._window = []
        self.num_steps = torch.zeros_like(self.num_steps)
        self.is_initialized = False

    @property
    def rows_each(self) -> int:
        """The number of rows that share the keys and values of one source."""
        keys = self.source_keys if self.has_memory else None
        return 1 if keys is None or self.c is None else self.c.shape[0] // keys.shape[0]

    def _on_rows(self, change: RowChange) -> None:
        """Change the rows of the target: states, and what is recorded of them."""
        if self.state is not None:
            self._keep_state(_on_each(change, self.state))
        self._window = [tuple(_on_each(change, past)) for past in self._past()]

    def _on_memory(self, of_rows: RowChange, of_sources: RowChange | None) -> None:
        """Change the rows of what is kept of the source: of V h~, of keys and values or of none."""
        if self.memory is None:
            return
        bias, keys, values = self.memory
        bias = None if bias is None else of_rows(bias)
        if of_sources is not None and keys is not None:
            assert values is not None
            keys, values = _on_each(of_sources, Memory(None, keys, values))[1:]
        self._change_memory(Memory(bias, keys, values))

    def _change_memory(self, memory: Memory) -> None:
        self._keep_memory(memory)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Move row `beam_idx[b]` to row b."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, so that it becomes `repeats` equal neighbours."""

        def repeat(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(repeats, dim=0)

        # They share their keys and values.
        self._on_memory(repeat, None)
        self._on_rows(repeat)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`."""
        self.select_rows(indices, within_sources=_within_sources(indices, self, self.rows_each))

    def select_rows(self, indices: torch.Tensor, *, within_sources: bool) -> None:
        """Keep the rows `indices`, as many as before and each of its old source, or any."""

        def select(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.index_select(0, indices.to(tensor.device))

        if not within_sources:
            each = self.rows_each

            def select_sources(tensor: torch.Tensor) -> torch.Tensor:
                places = indices.to(tensor.device)
                return tensor.index_select(0, places if each == 1 else places // each)

            # From here on every row has keys and values of its own.
            self._on_memory(select, select_sources)
        self._on_rows(select)

    def activate_past_recording(self) -> None:
        """Keep all steps from now on, until `crop` takes some back and forgets the others."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` steps and forget how the others were made.

        What is left is the state of a cache that never saw the removed steps.

        Raises:
            ValueError: If those steps were not all recorded since the last `crop`.
        """
        window = self._past()
        recorded = sum(past.c.shape[1] for past in window)
        if not -recorded <= tokens_to_remove <= 0:
            rule = "0 unless the steps are recorded (`activate_past_recording`)"
            if self.record_past:
                rule = f"in [-{recorded}, 0], the steps recorded since the last `crop`"
            raise ValueError(f"`tokens_to_remove` must be {rule}, but is {tokens_to_remove}.")
        left = recorded + tokens_to_remove
        # The call in which the step lies that becomes the last one.
        for past in window:
            if tokens_to_remove < 0 and left <= past.c.shape[1]:
                self._keep_state(_on_each(torch.clone, past.state_after(left)))
                break
            left -= past.c.shape[1]
        self.num_steps = self.num_steps + tokens_to_remove
        # What is left was accepted, and is never taken back: the memory stays small.
        self._window = []

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the first `store` fills the layer."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Refuse: there are no keys and values of past targets.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "A QRNNCache must be given states by `store`, but is given keys and values."
        )


class QRNNStaticCacheLayer(QRNNCacheLayer):
    """The same in tensors that keep their addresses, so that a compiled step needs no other graph.

    No gradient flows from one call to the next, and steps cannot be recorded.
    """

    is_compileable = True
    is_croppable = False

    def current_state(self) -> LayerState | None:
        """Return the state to go on from, None before the first step."""
        state = self.state
        if state is None or not self.is_initialized:
            return None
        # A clone, since autograd may save what `store` will overwrite.
        return LayerState(state.inputs, state.c.clone())

    def store(self, state: LayerState, num_steps: int, past: LayerPast | None = None) -> None:
        """Overwrite the state after `num_steps` more steps."""
        old = self.state
        # New tensors only at the first step, and after `reset` for a batch of other sizes.
        if old is None or (not self.is_initialized and not _alike(old, state)):
            self._keep_state(_on_each(_fixed, state))
            self.num_steps = _fixed(torch.zeros((), dtype=torch.int64, device=state.c.device))
        else:
            _overwrite(old, state)
        self.num_steps.add_(num_steps)
        self.is_initialized = True

    def remember(self, memory: Memory) -> Memory:
        """Keep `memory` and return what is kept."""
        old = self._kept_memory()
        if _alike(old, memory):
            _overwrite(old, memory)
            self.has_memory = True
        else:
            self._keep_memory(_on_each(_fixed, memory))
        # Not what is kept, which is detached: gradients of this call must reach the source.
        return memory

    def get_seq_length(self) -> Any:
        """Count the steps so far, pads included: a 0-d tensor after the first."""
        return self.num_steps if self.is_initialized else 0

    def reset(self) -> None:
        """Forget everything and keep the tensors for the next sequence."""
        # Their contents stay: nobody reads them while the flags below are False.
        self.num_steps.zero_()
        self.has_memory = False
        self.is_initialized = False

    def _on_rows(self, change: RowChange) -> None:
        if self.state is not None:
            self._keep_state(_in_place(self.state, _on_each(change, self.state)))

    def _change_memory(self, memory: Memory) -> None:
        self._keep_memory(_in_place(self._kept_memory(), memory))

    def activate_past_recording(self) -> None:
        """Refuse: a recording grows, a static cache does not.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "`past_key_values` must be a QRNNCache without `static` to take steps back, "
            "as assisted decoding does, but is a static one."
        )


def _fixed(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to an address that compiled graphs may rely on."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not torch.compiler.is_compiling():
        mark_static_address(copy)
    return copy


def _alike(old: Tensors, new: Tensors) -> bool:
    """Tell whether `new` fits into the tensors of `old`."""
    for a, b in zip(old, new, strict=True):
        if a is None or b is None:
            if a is not b:
                return False
        elif (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            return False
    return True


def _in_place(old: Tensors, new: Tensors) -> Tensors:
    """Return `new`, in the tensors of `old` where it fits into them."""
    if not _alike(old, new):
        return _on_each(_fixed, new)
    _overwrite(old, new)
    return old


def _within_sources(indices: torch.Tensor, layer: QRNNCacheLayer, rows_each: int) -> bool:
    """Tell whether the new row b is of the source of the old row b, as those of a beam search are.

    On a GPU the answer is waited for; keys and values that are moved take longer.
    """
    if rows_each == 1 or indices.numel() != layer.num_rows or torch.compiler.is_compiling():
        return False
    places = torch.arange(indices.numel(), device=indices.device)
    return torch.equal(indices // rows_each, places // rows_each)


def _overwrite(old: Tensors, new: Tensors) -> None:
    for a, b in zip(old, new, strict=True):
        if a is not None and b is not None:
            a.copy_(b.detach())


class QRNNCache(Cache):
    """Cache of a QRNN decoder, passed as `past_key_values`.

    Its size does not depend on the length of the target, unless it records: after
    `activate_past_recording()` it keeps every step until the next `crop`, which takes some back.

    Args:
        num_layers: Number of decoder layers.
        static: Keep everything in tensors of fixed addresses, as a compiled decoding step likes it.
    """

    def __init__(self, num_layers: int, *, static: bool = False) -> None:
        layer = QRNNStaticCacheLayer if static else QRNNCacheLayer
        super().__init__(layers=[layer() for _ in range(num_layers)])

    def layer(self, index: int) -> QRNNCacheLayer:
        """Return the state of decoder layer `index`."""
        layer = self.layers[index]
        assert isinstance(layer, QRNNCacheLayer)
        return layer

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first step."""
        return self.layer(0).num_rows

    @property
    def rows_each(self) -> int:
        """The number of rows that share the keys and values of one source, in every layer."""
        return max(self.layer(index).rows_each for index in range(len(self.layers)))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Move row `beam_idx[b]` to row b."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`."""
        # Asked once, for all layers.
        within = _within_sources(indices, self.layer(0), self.rows_each)
        for index in range(len(self.layers)):
            self.layer(index).select_rows(indices, within_sources=within)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Count the steps so far, pads included: an int, or a 0-d tensor in a static cache."""
        return self.layer(layer_idx).get_seq_length()


# ------------------------------------------------------------------ in graphs

_TENSORS = ("inputs", "c", "gate_bias", "source_keys", "source_values", "num_steps")
_FLAGS = ("is_initialized", "has_memory", "record_past")


def _flatten_named(cache: QRNNCache) -> tuple[list[tuple[str, torch.Tensor]], dict[str, Any]]:
    """Return the tensors of a cache by name, and JSON that says how to put them back."""
    named: list[tuple[str, torch.Tensor]] = []
    layers = []
    for index in range(len(cache.layers)):
        layer, name = cache.layer(index), f"layers.{index}"
        parts = [(f"{name}.{part}", getattr(layer, part)) for part in _TENSORS]
        for number, past in enumerate(layer._window):
            parts += [(f"{name}.window.{number}.{i}", x) for i, x in enumerate(past)]
        named += [(path, x) for path, x in parts if x is not None]
        layers.append(
            {
                "present": [x is not None for _, x in parts],
                "flags": [getattr(layer, flag) for flag in _FLAGS],
            }
        )
    static = any(isinstance(layer, QRNNStaticCacheLayer) for layer in cache.layers)
    return named, {"static": static, "layers": layers}


def _unflatten(tensors: Iterable[Any], context: dict[str, Any]) -> QRNNCache:
    rest = iter(tensors)
    cache = QRNNCache(len(context["layers"]), static=context["static"])
    for index, kept in enumerate(context["layers"]):
        layer = cache.layer(index)
        parts = [next(rest) if present else None for present in kept["present"]]
        for name, part in zip(_TENSORS, parts, strict=False):
            setattr(layer, name, part)
        for name, flag in zip(_FLAGS, kept["flags"], strict=True):
            setattr(layer, name, flag)
        past, size = parts[len(_TENSORS) :], len(LayerPast._fields)
        layer._window = [tuple(past[i : i + size]) for i in range(0, len(past), size)]
    return cache


# Let torch.export take and return a cache, as transformers lets it do with its own.
register_container(QRNNCache, _flatten_named, _unflatten)
# A saved program holds its example inputs, which torch reads as plain data where it knows all
# classes, else as a pickle of anything, with a warning.
torch.serialization.add_safe_globals([QRNNCache, QRNNCacheLayer, QRNNStaticCacheLayer])
