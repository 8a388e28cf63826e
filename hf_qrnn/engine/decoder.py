"""The decoder's step in NumPy (Eqs. 7 and 8 of arXiv 1611.01576).

Shapes: B sources, M rows of each, R = B * M rows, S longest source, E channels, H units, K filter
width, G gates, A attention heads, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .encoder import Encoded, encode
from .equations import activate, feed_forward, rms_norm, softmax
from .int8 import times
from .network import AttentionBlock, Layer, Network, OutputAttention
from .threads import Stop
from .weights import Array

Ids = npt.NDArray[np.integer[Any]]


class LayerMemory(NamedTuple):
    """Arrays that a layer keeps of the sources, the same at every step.

    `gate_bias` is V h~ plus the convolution's bias (B, G*H); `keys` and `values` (B, A, S, H/A)
    where it attends.
    """

    gate_bias: Array
    keys: Array | None = None
    values: Array | None = None


class NumpyDecoder:
    """The decoder over some sources, with `rows_each` rows of each that share its memory.

    The rows of a source are neighbours. State is small: c and the last K - 1 inputs of each layer.

    Args:
        network: The model.
        sources: Token ids, none of them empty.
        rows_each: M.
        stop: Ends the work by an error, before each step.

    Attributes:
        weights: Attention weights (B, A, M, S) of the last step, for each layer that attends.
    """

    def __init__(
        self,
        network: Network,
        sources: list[list[int]],
        rows_each: int,
        stop: Stop | None = None,
    ) -> None:
        self._network, self._stop = network, stop or Stop()
        self.weights: list[Array] = []
        encoded = encode(network, sources)
        lengths = np.array([len(states) for states in encoded.states])
        self._is_pad = np.arange(lengths.max()) >= lengths[:, None]  # (B, S)
        self._memory = _remember(network, encoded)
        rows, hidden = len(sources) * rows_each, network.settings.hidden_size
        self._cells = [np.zeros((rows, hidden), np.float32) for _ in network.decoder]
        self._inputs = [
            np.zeros((rows, layer.kernel_size - 1, layer.input_size), np.float32)
            for layer in network.decoder
        ]

    def step(self, tokens: Ids) -> Array:
        """Read a token of each row (R,) and return the logits of the next (R, V)."""
        self._stop.check()
        network = self._network
        x = network.embedding[tokens]
        self.weights = []
        for index in range(len(network.decoder)):
            x = self._layer(index, x)
        if network.decoder_norm is not None:
            x = rms_norm(x, network.decoder_norm)
        if network.projection is not None:
            x = times(x, network.projection)
        logits: Array = times(x, network.output) + network.output_bias
        return logits

    def select(self, rows: Ids, sources: Ids | None = None) -> None:
        """Go on with `rows` of the state, and where given with `sources` of the memory only."""
        self._cells = [c[rows] for c in self._cells]
        self._inputs = [inputs[rows] for inputs in self._inputs]
        if sources is not None:
            self._is_pad = self._is_pad[sources]
            self._memory = [
                LayerMemory(*(None if x is None else x[sources] for x in memory))  # type: ignore[arg-type]
                for memory in self._memory
            ]

    def _layer(self, index: int, x: Array) -> Array:
        """Map a layer's inputs (R, E) to (R, H or E + H)."""
        layer, memory = self._network.decoder[index], self._memory[index]
        normed = x if layer.norm is None else rms_norm(x, layer.norm)
        window = np.concatenate([self._inputs[index], normed[:, None]], axis=1)  # (R, K, E)
        self._inputs[index] = window[:, 1:]
        gates = times(window.reshape(len(x), -1), layer.directions[0].weight)
        rows_each = len(x) // len(memory.gate_bias)
        gates = gates + np.repeat(memory.gate_bias, rows_each, axis=0)
        settings = self._network.settings
        write, f, o = activate(gates, settings.pooling, settings.hidden_size)
        c = self._cells[index] = f * self._cells[index] + write
        h = c
        attention = layer.attention
        if isinstance(attention, OutputAttention):
            h = times(self._attend(c, memory), attention.context) + times(c, attention.cell)
        out = h if o is None else o * h
        if layer.adds_input:
            out = x + out
        if isinstance(attention, AttentionBlock):
            query = times(rms_norm(out, attention.norm), attention.query)
            out = out + times(self._attend(query, memory), attention.out)
        if layer.feed_forward is not None:
            out = feed_forward(out, layer.feed_forward)
        return np.concatenate([x, out], axis=1) if layer.keeps_input else out

    def _attend(self, query: Array, memory: LayerMemory) -> Array:
        """Attend to the source of each row by queries (R, H): context (R, H)."""
        assert memory.keys is not None, "a layer that attends has keys"
        assert memory.values is not None
        sources, heads = memory.keys.shape[:2]
        queries = query.reshape(sources, -1, heads, query.shape[1] // heads).swapaxes(1, 2)
        scores = queries @ memory.keys.swapaxes(2, 3)  # (B, A, M, S)
        scores *= np.float32(self._network.settings.score_scale)
        scores[np.broadcast_to(self._is_pad[:, None, None], scores.shape)] = -np.inf
        weights = softmax(scores)
        self.weights.append(weights)
        context: Array = (weights @ memory.values).swapaxes(1, 2)  # (B, M, A, H/A)
        return context.reshape(query.shape)


def _remember(network: Network, encoded: Encoded) -> list[LayerMemory]:
    """Compute what the layers keep of the sources."""
    width = max(len(states) for states in encoded.states)
    padded = np.zeros((len(encoded.states), width, network.settings.hidden_size), np.float32)
    for row, states in zip(padded, encoded.states, strict=True):
        row[: len(states)] = states
    memories = []
    # A decoder with fewer layers reads the encoder's last ones.
    skipped = len(network.encoder) - len(network.decoder)
    for index, layer in enumerate(network.decoder):
        assert layer.encoding is not None, "a decoder's layer reads h~"
        h_tilde = encoded.finals[:, index + skipped]
        gate_bias = times(h_tilde, layer.encoding) + layer.directions[0].bias
        memories.append(LayerMemory(gate_bias, *_keys_values(network, layer, padded)))
    return memories


def _keys_values(network: Network, layer: Layer, states: Array) -> tuple[Array | None, ...]:
    """Return keys and values (B, A, S, H/A) of encoder states (B, S, H), or nothing."""
    keys = values = states
    if layer.attention is None:
        return ()
    if isinstance(layer.attention, AttentionBlock):
        both = times(states, layer.attention.key_value)
        keys, values = np.split(both, 2, axis=-1)
    heads = network.settings.num_attention_heads
    shape = (*states.shape[:2], heads, states.shape[2] // heads)
    return keys.reshape(shape).swapaxes(1, 2), values.reshape(shape).swapaxes(1, 2)
