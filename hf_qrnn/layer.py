"""`QRNN`, the stack of layers that is called like `nn.LSTM` (section 2 of arXiv 1611.01576).

Below it `QRNNState`, the pair `(h_n, c_n)` that carries the window of its convolutions.

Shapes: B batch, T time, E input size, H hidden size, K kernel size, G gates, L layers,
D directions (1, or 2 when bidirectional).
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from hf_qrnn.model.connect_qrnn import drop
from hf_qrnn.model.internals_qrnn import is_transformed, is_watched
from hf_qrnn.model.layers_qrnn import LayerState, QRNNLayer
from hf_qrnn.model.padding_qrnn import last_step
from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS

_SUFFIXES = ("", "_reverse")
# Reading a number from an accelerator waits for all work before it: a process does so this often.
MAX_LOOKS = 16


class QRNN(nn.Module):
    """A stack of quasi-recurrent layers (Eqs. 1 and 3 to 6) that is called like `nn.LSTM`.

    Every direction's convolution is masked in its own processing order, so the forward direction
    sees the K-1 steps before a step and the backward direction the K-1 steps after it.

    Parameters are named `l{k}.convolution.weight` (G*H, K*width) and `l{k}.convolution.bias`
    (G*H,), with `l{k}_reverse` for the backward direction: rows by gate in the order z, f, o, i,
    columns by tap in processing order.

    Args:
        input_size: E, features of a step.
        hidden_size: H, units per direction.
        num_layers: L.
        bias: Whether the convolutions have one.
        batch_first: Whether input and output are (B, T, ...) and not (T, B, ...); states are not
            concerned.
        dropout: Probability of zeroing the output of every layer but the last, in training.
        bidirectional: Read each way and concatenate, after every layer.
        kernel_size: K, the filter width of every layer.
        pooling: "f", "fo" or "ifo".
        zoneout: Probability of Eq. 6, in training.
        dense: Concatenate every layer's input to its output, except in the last (section 2.2).
        proj_size: 0. No output goes back into a gate, so there is nothing to project.
        device, dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    # What `nn.LSTM` calls "LSTM", for code that asks which kind of layer it has.
    mode = "QRNN"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        kernel_size: int = 2,
        pooling: str = "fo",
        zoneout: float = 0.0,
        dense: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.bidirectional, self.kernel_size, self.pooling = bidirectional, kernel_size, pooling
        self.zoneout, self.dense, self.proj_size = zoneout, dense, proj_size
        self._check_options()
        if dropout > 0.0 and num_layers == 1:
            warnings.warn(
                "`dropout` acts on the output of every layer but the last, so with `num_layers` 1 "
                f"a `dropout` of {dropout} does nothing.",
                stacklevel=2,
            )
        with torch.device(torch.get_default_device() if device is None else device):
            for layer, width in enumerate(self._widths()):
                for suffix in _SUFFIXES[: 1 + bidirectional]:
                    self.add_module(f"l{layer}{suffix}", self._make_layer(width, suffix != ""))
        self.to(torch.get_default_dtype() if dtype is None else dtype)
        self.reset_parameters()

    def _check_options(self) -> None:
        for name in ("input_size", "hidden_size", "num_layers", "kernel_size"):
            value = getattr(self, name)
            _require(name, "an integer of at least 1", value, type(value) is int and value >= 1)
        for name in ("bias", "batch_first", "bidirectional", "dense"):
            value = getattr(self, name)
            _require(name, "a boolean", value, isinstance(value, bool))
        _require("proj_size", "0", self.proj_size, self.proj_size == 0)
        _require("dropout", "in [0, 1]", self.dropout, _is_number(self.dropout, closed=True))
        _require("zoneout", "in [0, 1)", self.zoneout, _is_number(self.zoneout, closed=False))
        kinds = ", ".join(map(repr, POOL_KINDS))
        _require("pooling", f"one of {kinds}", self.pooling, self.pooling in POOL_KINDS)

    def _widths(self) -> list[int]:
        """Return the input width of every layer."""
        widths, own = [self.input_size], self.hidden_size * (1 + self.bidirectional)
        for _ in range(self.num_layers - 1):
            widths.append(own + (widths[-1] if self.dense else 0))
        return widths

    def _make_layer(self, width: int, reverse: bool) -> QRNNLayer:
        layer = QRNNLayer(
            width,
            self.hidden_size,
            self.kernel_size,
            pooling=self.pooling,
            zoneout=self.zoneout,
            reverse=reverse,
        )
        if not self.bias:
            layer.convolution.register_parameter("bias", None)
        return layer

    def _directions(self) -> list[list[QRNNLayer]]:
        """Make the directions of every layer."""
        suffixes = _SUFFIXES[: 1 + self.bidirectional]
        return [
            [getattr(self, f"l{layer}{suffix}") for suffix in suffixes]
            for layer in range(self.num_layers)
        ]

    def _layers(self) -> list[QRNNLayer]:
        """List every layer and direction, in the order of `h_n`; not what others added here."""
        return [layer for directions in self._directions() for layer in directions]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of every layer and direction, in the order of `h_n`."""
        return [list(layer.parameters()) for layer in self._layers()]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights from N(0, 1/(K*width)); forget biases are 1, all others 0.

        Paper: not given. `nn.LSTM`: U(-H^-1/2, H^-1/2) for all. Here: as in the models of this
        package. The variance keeps pre-activations near 1, and a forget gate that starts open
        (sigmoid(1) keeps 73 % of the state per step) lets gradients reach further back than the
        sigmoid(0) = 50 % of a zero bias.
        """
        for layer in self._layers():
            convolution = layer.convolution
            nn.init.normal_(convolution.weight, std=convolution.in_features**-0.5)
            if self.bias:
                nn.init.zeros_(convolution.bias)
                nn.init.ones_(convolution.bias[self.hidden_size : 2 * self.hidden_size])

    def flatten_parameters(self) -> None:
        """Do nothing: there is no flat buffer of weights to keep. For code written for LSTMs."""

    def extra_repr(self) -> str:
        """List the arguments that are not at their default, as in `nn.LSTM`."""
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "kernel_size": 2,
            "pooling": "fo",
            "zoneout": 0.0,
            "dense": False,
        }
        changed = [
            f", {name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        return f"{self.input_size}, {self.hidden_size}{''.join(changed)}"

    def forward(
        self,
        input: torch.Tensor | PackedSequence,  # noqa: A002 (the name in nn.LSTM)
        hx: Sequence[Any] | None = None,
    ) -> tuple[torch.Tensor | PackedSequence, QRNNState]:
        """Run over a batch of sequences.

        Args:
            input: (T, B, E), (B, T, E) when `batch_first`, (T, E) without a batch, or a
                `PackedSequence` of any order.
            hx: The state to go on from, zeros when None: a `QRNNState`, or `(h_0, c_0)` of
                (L*D, B, H) each. What is passed back whole goes on exactly. From a plain
                `(h_0, c_0)`, or the state of a layer with inputs of another width, the window
                starts at zero: the first K-1 steps see zeros before them, which a warning says
                once where `c_0` is not zero. `h_0` has no effect. In a backward direction, c_0 is
                the state before the last step, as in `nn.LSTM`. `(h_0, c_0, inputs)` is a whole
                state too, for code that takes tuples apart.

        Returns:
            The last layer's output, in the form of `input` with D*H features, and the state. A
            unidirectional QRNN that goes on from the state gives what the whole sequence gives.

        Raises:
            ValueError: If a shape does not fit.
            TypeError: If `input` is not floating point, or `hx` is no sequence of two or three.
        """
        if isinstance(input, PackedSequence):
            x, mask = _unpack(input)
            self._check_input(x, batch_first=True)
            output, state = self._run(x, mask, self._starts(hx, x, has_batch=True))
            return _pack(output, input), state
        self._check_input(input, batch_first=self.batch_first)
        if input.dim() == 2:
            x = input[None]  # (1, T, E)
            output, state = self._run(x, None, self._starts(hx, x, has_batch=False))
            return output[0], state.select(0)
        x = input if self.batch_first else input.transpose(0, 1)  # (B, T, E)
        output, state = self._run(x, None, self._starts(hx, x, has_batch=True))
        return output if self.batch_first else output.transpose(0, 1), state

    def _run(
        self, x: torch.Tensor, mask: torch.Tensor | None, starts: list[LayerState | None]
    ) -> tuple[torch.Tensor, QRNNState]:
        """Run all layers over `x` (B, T, E), each direction from its own start."""
        last_h: list[torch.Tensor] = []
        last_c: list[torch.Tensor] = []
        inputs: list[torch.Tensor] = []
        h = x
        for index, directions in enumerate(self._directions()):
            outputs = []
            for layer in directions:
                result = layer(x, mask, state=starts[len(last_h)])
                outputs.append(result.h)
                last_h.append(last_step(result.h, mask, reverse=layer.reverse))
                last_c.append(result.final)
                if result.state is not None:
                    inputs.append(result.state.inputs.transpose(0, 1))  # (K-1, B, width)
            # Of one direction a copy would cost a pass over the whole output.
            h = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)  # (B, T, D*H)
            if index < self.num_layers - 1:
                h = drop(h, self.dropout, self.training)
                x = torch.cat([x, h], dim=-1) if self.dense else h
        # A state is memory of its own, and `last_h` are views of the outputs; `last_c` are not.
        c_n = last_c[0][None] if len(last_c) == 1 else torch.stack(last_c)
        return h, QRNNState(torch.stack(last_h), c_n, tuple(inputs))

    def _check_input(self, x: torch.Tensor, *, batch_first: bool) -> None:
        if not x.is_floating_point():
            raise TypeError(f"`input` must be floating point, but is {x.dtype}.")
        time = 1 if batch_first and x.dim() == 3 else 0
        if x.dim() in (2, 3) and x.shape[-1] == self.input_size and x.shape[time] > 0:
            return
        form = "(batch, time, " if batch_first else "(time, batch, "
        rule = f"{form}{self.input_size}) or (time, {self.input_size}), with at least one step"
        _require("input", rule, tuple(x.shape), False)

    def _starts(
        self, hx: Sequence[Any] | None, x: torch.Tensor, *, has_batch: bool
    ) -> list[LayerState | None]:
        """Return the start of every layer and direction, in the order of `h_n`."""
        num_directions = 1 + self.bidirectional
        if hx is None:
            return [None] * (self.num_layers * num_directions)
        if not isinstance(hx, (tuple, list)) or len(hx) not in (2, 3):
            given = "" if isinstance(hx, torch.Tensor) else f" of {len(hx)}"
            raise TypeError(
                f"`hx` must be a QRNNState or (h_0, c_0), but is a {type(hx).__name__}{given}."
            )
        inputs = hx[2] if len(hx) == 3 else getattr(hx, "inputs", None)
        if isinstance(hx, QRNNState) and inputs and not self._is_own(inputs):
            inputs = None
        batch = (x.shape[0],) if has_batch else ()
        shape = (self.num_layers * num_directions, *batch, self.hidden_size)
        for name, tensor in zip(("h_0", "c_0"), hx[:2], strict=True):
            _require_shape(name, tensor, shape)
        c_0 = hx[1] if has_batch else hx[1][:, None]
        if inputs is None:
            tell_of_lost_window(c_0, self.kernel_size)
        past = self._past_inputs(inputs or None, x, batch)
        return [
            # The backward direction begins at the end, with no inputs behind it.
            LayerState(
                past[layer] if way == 0 else torch.zeros_like(past[layer]),
                c_0[layer * num_directions + way],
            )
            for layer in range(self.num_layers)
            for way in range(num_directions)
        ]

    def _is_own(self, inputs: tuple[torch.Tensor, ...]) -> bool:
        """Tell whether `inputs` fit this layer; an encoder's, given to a decoder, may not."""
        theirs = [(past.shape[0], past.shape[-1]) for past in inputs]
        return theirs == [(self.kernel_size - 1, width) for width in self._widths()]

    def _past_inputs(
        self, given: Sequence[torch.Tensor] | None, x: torch.Tensor, batch: tuple[int, ...]
    ) -> list[torch.Tensor]:
        """Return the K-1 inputs of every layer before the first step, (B, K-1, width); or zeros."""
        num, widths = self.kernel_size - 1, self._widths()
        if given is None:
            return [x.new_zeros(x.shape[0], num, width) for width in widths]
        _require("inputs", f"{self.num_layers} tensors", len(given), len(given) == len(widths))
        for layer, (tensor, width) in enumerate(zip(given, widths, strict=True)):
            _require_shape(f"inputs[{layer}]", tensor, (num, *batch, width))
        return [tensor.transpose(0, 1) if batch else tensor[None] for tensor in given]


def _unpack(packed: PackedSequence) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return padded sequences (B, T, E) in the order of the caller, and their mask (B, T)."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    length = padded.shape[1]
    if bool((lengths == length).all()):
        return padded, None
    return padded, (torch.arange(length) < lengths[:, None]).to(padded.device)


def _pack(output: torch.Tensor, like: PackedSequence) -> PackedSequence:
    """Pack `output` (B, T, H) in the order of `like`."""
    if like.sorted_indices is not None:
        output = output.index_select(0, like.sorted_indices)
    # At every step, the rows that are still running come first.
    is_running = torch.arange(output.shape[0]) < like.batch_sizes[:, None]  # (T, B)
    data = output.transpose(0, 1)[is_running.to(output.device)]
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def _is_number(value: Any, *, closed: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0.0 <= value < 1.0 or (closed and value == 1.0)


def _require_shape(name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor, but is a {type(tensor).__name__}.")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, but has {tuple(tensor.shape)}.")


def _require(name: str, rule: str, value: object, holds: bool) -> None:
    if not holds:
        raise ValueError(f"`{name}` must be {rule}, but is {value!r}.")


# ------------------------------------------------------------------ the state


class QRNNState(tuple[Any, ...]):
    """State of a `QRNN` after its last step; the batch is dimension 1, as in `nn.LSTM`.

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
        """Make a state of `h_n` and `c_n`, or of one iterable of both, as generic code does."""
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
        """Return the same state without its graph, for truncated back-propagation through time."""
        return self._map(lambda tensor: tensor.detach())

    def clone(self) -> QRNNState:
        """Copy the state into memory of its own."""
        return self._map(lambda tensor: tensor.clone())

    def to(self, *args: Any, **kwargs: Any) -> QRNNState:
        """Call `tensor.to(*args, **kwargs)` for every tensor."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def select(self, index: Any) -> QRNNState:
        """Select the state of some sequences of the batch, in the order of `index`.

        Args:
            index: An index of one dimension: a slice, integers, or booleans (B,). One integer gives
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
        or is_transformed()
        or is_watched()
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
