"""Attention of a translation over its source, and the scores of its tokens, by NumPy.

Shapes: S source length, T target length, A attention heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .decoder import NumpyDecoder
from .equations import log_softmax
from .network import Network
from .weights import Array


@dataclass(frozen=True)
class AttentionMap:
    """Attention weights of one translation.

    Attributes:
        source_tokens: S texts: what each token adds to the sentence, end token included; a token
            that ends inside a character is "", the character belongs to the one that completes it.
        target_tokens: T texts, the same of the translation; its end token only if the model
            wrote one.
        weights: (T, S), the mean over heads and attending layers, of an ensemble over its members;
            a row adds up to 1.
        layers: For each layer that attends its weights (A, T, S), of an ensemble one member's
            behind the other's. The layers are in the order they compute in.
        log_probabilities: (T,), of each token of the translation, in nats.
    """

    source_tokens: list[str]
    target_tokens: list[str]
    weights: Array
    layers: list[Array]
    log_probabilities: Array


def attend(
    networks: Sequence[Network],
    starts: Sequence[int],
    source: list[int],
    targets: Sequence[int],
    vocab_size: int,
) -> tuple[Array, list[Array], Array]:
    """Run members over a translation: `weights`, `layers` and `log_probabilities` of its map.

    Args:
        networks: Those of the members.
        starts: The token before the first of each.
        source: Source ids.
        targets: Ids of the translation.
        vocab_size: The smallest of the members'.
    """
    logs, means, layers = [], [], []
    for network, start in zip(networks, starts, strict=True):
        decoder, steps = NumpyDecoder(network, [source], 1), []
        rows = []
        # Step t reads target t - 1 and predicts, with the weights of row t, target t.
        for token in (start, *targets[:-1]):
            rows.append(log_softmax(decoder.step(np.array([token])))[0, :vocab_size])
            steps.append([weights[0, :, 0] for weights in decoder.weights])  # each (A, S)
        own = [np.stack(some, axis=1) for some in zip(*steps, strict=True)]  # each (A, T, S)
        layers += own
        means.append(np.mean([layer.mean(0) for layer in own], axis=0))
        logs.append(np.stack(rows))
    all_logs = log_softmax(np.mean(logs, axis=0))  # (T, V)
    return np.mean(means, axis=0), layers, all_logs[np.arange(len(targets)), list(targets)]
