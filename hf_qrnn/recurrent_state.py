"""`QRNNState`, the pair `(h_n, c_n)` of a `QRNN` that carries the window of its convolutions.

Shapes: B batch, E input size, H hidden size, K kernel size, L layers, D directions.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

# On an accelerator a look at a number waits for all work before it: so many are taken per process.
MAX_LOOKS = 16


class QRNNState(tuple[Any, ...]):
    """Where a `QRNN` stands after its last step; the batch is dimension 1, as in `nn.LSTM`.

    It is a tuple of exactly two, `h, c = state`. What a program rebuilds from the two alone, say by
    `tuple(v.detach() for v in state)`, is a plain `(h, c)` without `inputs`: a layer that goes on
    from it sees zeros before its first step, where the state passed back whole goes on exactly. The
    methods here, `copy`, `pickle`, torch's pytree and `torch.compile` keep `inputs`.

    Attributes:
        h_n: Output of every layer and direction at its last step, (L*D, B, H). It is a result
            only: no gate reads the previous output, so as an initial state it has no effect.
        c_n: Pooling state after that step, (L*D, B, H), in at least float32.
        inputs: For every layer the last K-1 inputs of its forward direction, (K-1, B, E) in the
            first layer: what the convolution of the next step still has to see. None in a pair
            that was rebuilt; `()` says that there were none, and that zeros are meant.

    Without a batch, the batch dimension is missing everywhere.
    """

    inputs: tuple[torch.Tensor, ...] | None

    def __new__(
        cls,
        h_n: Any,
        c_n: torch.Tensor | None = None,
        inputs: Iterable[torch.Tensor] | None = None,
    ) -> QRNNState:
        """A state of `h_n` and `c_n`, or of one iterable of both, as generic code makes tuples."""
        pair = (h_n, c_n)
        if c_n is None:
            pair = (h_n,) if isinstance(h_n, torch.Tensor) else tuple(h_n)
        if len(pair) != 2:
            raise ValueError(f"`c_n` must follow `h_n`, but the values given are {len(pair)}.")
        self = super().__new__(cls, pair)
        self.inputs = None if inputs is None else tuple(inputs)
        return self

    @property
    def h_n(self) -> torch.Tensor:
        """(L*D, B, H), the first of the two."""
        h_n: torch.Tensor = self[0]
        return h_n

    @property
    def c_n(self) -> torch.Tensor:
        """(L*D, B, H), the second of the two."""
        c_n: torch.Tensor = self[1]
        return c_n

    def detach(self) -> QRNNState:
        """The same state without its graph, for truncated back-propagation through time."""
        return self._map(lambda tensor: tensor.detach())

    def clone(self) -> QRNNState:
        """A copy in memory of its own."""
        return self._map(lambda tensor: tensor.clone())

    def to(self, *args: Any, **kwargs: Any) -> QRNNState:
        """`tensor.to(*args, **kwargs)` of every tensor."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def select(self, index: Any) -> QRNNState:
        """The state of some sequences of the batch, in the order of `index`.

        Args:
            index: What indexes a dimension: a slice, integers, or booleans (B,). One integer gives
                that sequence's state without a batch.

        Raises:
            ValueError: If the state has no batch.
        """
        if self.h_n.dim() != 3:
            raise ValueError(
                f"`h_n` must have a batch to select from, but has shape {tuple(self.h_n.shape)}."
            )
        return self._map(lambda tensor: tensor[:, index])

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> QRNNState:
        inputs = None if self.inputs is None else tuple(map(function, self.inputs))
        return QRNNState(function(self[0]), function(self[1]), inputs)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.inputs)

    def __repr__(self) -> str:
        return f"QRNNState(h_n={self[0]!r}, c_n={self[1]!r}, inputs={self.inputs!r})"


def _flatten(state: QRNNState) -> tuple[list[Any], None]:
    return [*state] if state.inputs is None else [*state, state.inputs], None


def _flatten_with_keys(state: QRNNState) -> tuple[list[tuple[Any, Any]], None]:
    children, context = _flatten(state)
    names = ("h_n", "c_n", "inputs")[: len(children)]
    keys = [pytree.GetAttrKey(name) for name in names]
    return list(zip(keys, children, strict=True)), context


def _unflatten(children: Iterable[Any], _: None) -> QRNNState:
    h_n, c_n, *inputs = children
    # Not by the constructor: what is put together again need not be tensors.
    state = tuple.__new__(QRNNState, (h_n, c_n))
    state.inputs = inputs[0] if inputs else None
    return state


pytree.register_pytree_node(
    QRNNState,
    _flatten,
    _unflatten,
    serialized_type_name="hf_qrnn.QRNNState",
    flatten_with_keys_fn=_flatten_with_keys,
)
# `torch.load` takes `nn.LSTM`'s state out of a program's own file, and so it does this one.
torch.serialization.add_safe_globals([QRNNState])


# ------------------------------------------------------------------ a state without its window

_looks = itertools.count()


def tell_of_lost_window(c_0: torch.Tensor, kernel_size: int) -> None:
    """Warn, once in a process, that a plain `(h_0, c_0)` has no inputs before its first step.

    Nothing is lost with a filter of one step, nor where `c_0` is zero: so a sequence begins. A
    compiler, a tracer or a transform must not look at numbers, so under one nothing is said.
    """
    if kernel_size > 1 and _may_look(c_0) and bool(c_0.any()):
        _warn_of_lost_window()


def _may_look(tensor: torch.Tensor) -> bool:
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or tensor.device.type == "meta"
        or _warn_of_lost_window.cache_info().currsize > 0
    ):
        return False
    if tensor.device.type == "cpu":
        return True
    capturing = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return not capturing and next(_looks) < MAX_LOOKS


@functools.cache
def _warn_of_lost_window() -> None:
    warnings.warn(
        "`hx` is a plain (h_0, c_0), or the state of a layer with other inputs, so every layer "
        "sees zeros before its first step. To go on where a sequence stopped, pass the QRNNState "
        "back whole: `state.detach()` and its other methods keep the inputs it carries. If zeros "
        "are meant, pass QRNNState(h_0, c_0, ()).",
        stacklevel=2,
    )
