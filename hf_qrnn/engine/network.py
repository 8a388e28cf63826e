"""The weights of a translation model by their places in the network.

Shapes: E input channels, H units, K filter width, G gates, F inner width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from .int8 import Int8Matrix
from .settings import NUM_GATES, Settings
from .weights import Array, Matrix, Weights


class Convolution(NamedTuple):
    """All gates of one direction: `weight` (G*H', K*E) and `bias` (G*H')."""

    weight: Matrix
    bias: Array


class FeedForward(NamedTuple):
    """`norm` (H), `gate_and_in` (2F, H), `out` (H, F)."""

    norm: Array
    gate_and_in: Matrix
    out: Matrix


class OutputAttention(NamedTuple):
    """W_k and W_c of Eq. 8, each (H, H)."""

    context: Matrix
    cell: Matrix


class AttentionBlock(NamedTuple):
    """`norm` (H), `query` (H, H), `key_value` (2H, H), `out` (H, H)."""

    norm: Array
    query: Matrix
    key_value: Matrix
    out: Matrix


class Layer(NamedTuple):
    """One layer of either side.

    Attributes:
        input_size: E.
        kernel_size: K.
        directions: One convolution, or a forward and a backward one.
        reverses: For each direction whether it goes from the last step to the first.
        norm: Of the layer's input (E), or None.
        adds_input: Whether the input is added to the output.
        keeps_input: Whether the input is put before the output.
        encoding: V of Eq. 7 (G*H, H), or None.
    """

    input_size: int
    kernel_size: int
    directions: tuple[Convolution, ...]
    reverses: tuple[bool, ...]
    norm: Array | None
    adds_input: bool
    keeps_input: bool
    feed_forward: FeedForward | None
    encoding: Matrix | None
    attention: OutputAttention | AttentionBlock | None


class Network(NamedTuple):
    """A whole model.

    Attributes:
        embedding: (V, E).
        encoder_norm, decoder_norm: Behind the last layers (H), or None.
        projection: Before the output layer, or None.
        output, output_bias: (V, width) and (V).
    """

    settings: Settings
    embedding: Array
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    encoder_norm: Array | None
    decoder_norm: Array | None
    projection: Matrix | None
    output: Matrix
    output_bias: Array


def read_network(settings: Settings, weights: Weights) -> Network:
    """Take the weights of a model, each of the shape its settings say.

    Raises:
        ValueError: If one is missing or of another shape.
    """
    vocab, embed, hidden = settings.vocab_size, settings.embedding_size, settings.hidden_size
    table = weights.take_matrix("model.shared.weight", vocab, embed)
    embedding = table.dense() if isinstance(table, Int8Matrix) else table
    tied = settings.tie_word_embeddings
    projects = tied and embed != hidden
    return Network(
        settings,
        embedding,
        _layers(settings, weights, "encoder"),
        _layers(settings, weights, "decoder"),
        _norm(settings, weights, "model.encoder.norm", hidden),
        _norm(settings, weights, "model.decoder.norm", hidden),
        weights.take_matrix("output_projection.weight", embed, hidden) if projects else None,
        table if tied else weights.take_matrix("lm_head.weight", vocab, hidden),
        weights.take("lm_head.bias", vocab),
    )


def _layers(settings: Settings, weights: Weights, part: str) -> tuple[Layer, ...]:
    """Take the layers of "encoder" or "decoder"."""
    decodes = part == "decoder"
    kernels = settings.decoder_kernel_sizes if decodes else settings.encoder_kernel_sizes
    hidden, num_gates = settings.hidden_size, NUM_GATES[settings.pooling]
    reverses: tuple[bool, ...] = (False,) if decodes else (settings.reverse_source,)
    if settings.encoder_bidirectional and not decodes:
        reverses = (settings.reverse_source, not settings.reverse_source)
    layers, width = [], settings.embedding_size
    for index, kernel_size in enumerate(kernels):
        prefix = f"model.{part}.layers.{index}"
        is_last = index == len(kernels) - 1
        places = [f"{prefix}.directions.{way}" for way in range(len(reverses))]
        rows = num_gates * hidden // len(reverses)
        layer = Layer(
            width,
            kernel_size,
            tuple(
                Convolution(
                    weights.take_matrix(f"{place}.convolution.weight", rows, kernel_size * width),
                    weights.take(f"{place}.convolution.bias", rows),
                )
                for place in ([f"{prefix}.layer"] if decodes else places)
            ),
            reverses,
            _norm(settings, weights, f"{prefix}.connection.norm", width),
            settings.residual and width == hidden,
            settings.dense_connections and not is_last,
            _feed_forward(settings, weights, f"{prefix}.feed_forward"),
            weights.take_matrix(f"{prefix}.layer.encoding.weight", rows, hidden)
            if decodes
            else None,
            _attention(settings, weights, f"{prefix}.attention", is_last) if decodes else None,
        )
        layers.append(layer)
        width = hidden + (width if layer.keeps_input else 0)
    return tuple(layers)


def _norm(settings: Settings, weights: Weights, name: str, width: int) -> Array | None:
    return weights.take(f"{name}.weight", width) if settings.rms_norm else None


def _feed_forward(settings: Settings, weights: Weights, name: str) -> FeedForward | None:
    hidden, inner = settings.hidden_size, settings.feed_forward_size
    if inner == 0:
        return None
    return FeedForward(
        weights.take(f"{name}.norm.weight", hidden),
        weights.take_matrix(f"{name}.gate_and_in.weight", 2 * inner, hidden),
        weights.take_matrix(f"{name}.out.weight", hidden, inner),
    )


def _attention(
    settings: Settings, weights: Weights, name: str, is_last: bool
) -> OutputAttention | AttentionBlock | None:
    hidden = settings.hidden_size
    if settings.attends_everywhere:
        return AttentionBlock(
            weights.take(f"{name}.norm.weight", hidden),
            weights.take_matrix(f"{name}.query.weight", hidden, hidden),
            weights.take_matrix(f"{name}.key_value.weight", 2 * hidden, hidden),
            weights.take_matrix(f"{name}.out.weight", hidden, hidden),
        )
    if not is_last:
        return None
    return OutputAttention(
        weights.take_matrix(f"{name}.context.weight", hidden, hidden),
        weights.take_matrix(f"{name}.cell.weight", hidden, hidden),
    )
