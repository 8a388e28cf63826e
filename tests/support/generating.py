"""Random models that generate, small and far from ties, for the tests of generate()."""

from collections.abc import Sequence
from typing import Any

import torch
from small_models import small

from hf_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForConditionalGeneration

LENGTHS = (8, 5, 1)


def config(**changes: Any) -> QRNNConfig:
    return small(**{"vocab_size": 13, "embedding_size": 8, "initializer_range": 1.0, **changes})


def seq2seq(**changes: Any) -> QRNNForConditionalGeneration:
    """In float64, whose choices do not hang on the order of additions."""
    return QRNNForConditionalGeneration(config(**changes)).double().eval()


def language_model(**changes: Any) -> QRNNForCausalLM:
    return QRNNForCausalLM(config(**changes)).double().eval()


def source(lengths: Sequence[int] = LENGTHS) -> dict[str, torch.Tensor]:
    """Three sources of different lengths, padded on the right."""
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    return {"input_ids": torch.randint(4, 13, mask.shape), "attention_mask": mask}


def prompts() -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the left."""
    return {name: tensor.flip(1) for name, tensor in source().items()}


def alone(inputs: dict[str, torch.Tensor], row: int = 0) -> dict[str, torch.Tensor]:
    """One row of a batch, without pads."""
    real = inputs["attention_mask"][row].bool()
    return {name: tensor[row : row + 1, real] for name, tensor in inputs.items()}
