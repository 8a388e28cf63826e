"""Configs and models small enough for any test; a file that wants other sizes changes these."""

from typing import Any

import torch

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration


def small(**changes: Any) -> QRNNConfig:
    """Two layers on each side, and sizes that all differ."""
    sizes = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 8}
    return QRNNConfig(**{**sizes, "encoder_layers": 2, "decoder_layers": 2, **changes})


def small_model(**changes: Any) -> QRNNForConditionalGeneration:
    """Make a translation model of one layer on each side, always with the same weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "embedding_size": 8, "encoder_layers": 1, "decoder_layers": 1}
    return QRNNForConditionalGeneration(small(**{**sizes, **changes}))
