"""A trained language model as the beginning of a classifier.

Weights that have one name in two heads go from any checkpoint into any Auto class by themselves.
The language model is a decoder and the classifier an encoder, so between these two the layers have
different names, and only the embedding is common. Here the layers are renamed.
"""

from __future__ import annotations

import os
import re
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.utils import logging

from .configuration_qrnn import QRNNConfig
from .modeling_qrnn import QRNNForCausalLM, QRNNForSequenceClassification

logger = logging.get_logger(__name__)

_LAYER = re.compile(r"^model\.decoder\.layers\.(\d+)\.layer\.")


def classifier_from_language_model(
    name_or_path: str | os.PathLike[str], *, revision: str = "main", **changes: Any
) -> QRNNForSequenceClassification:
    """Load a `QRNNForCausalLM` checkpoint as a classifier that reads as the language model did.

    Its encoder has the language model's depth and filter widths, masked convolutions, and reads
    forward in one direction; at first its states are those of the language model. The output layer
    is new, and a warning says so.

    Args:
        name_or_path: A folder or a name on the Hub.
        revision: Branch, tag or commit on the Hub.
        changes: Fields of the config to set, such as `num_labels` or `dropout`.

    Raises:
        ValueError: If the checkpoint is no QRNN language model, or `changes` ask for other layers.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        name_or_path, revision=revision, output_loading_info=True
    )
    model, report = loaded
    if not isinstance(model, QRNNForCausalLM) or report["missing_keys"]:
        raise ValueError(
            f"`name_or_path` must be a checkpoint of QRNNForCausalLM, but is {str(name_or_path)!r}."
        )
    fields = model.config.to_dict() | {
        "encoder_layers": model.config.decoder_layers,
        "encoder_kernel_sizes": model.config.kernel_sizes("decoder"),
        "encoder_causal": True,
        "encoder_bidirectional": False,
        "reverse_source": False,
    }
    classifier = QRNNForSequenceClassification(QRNNConfig.from_dict(fields | changes))
    weights = {_encoder_name(name): tensor for name, tensor in model.state_dict().items()}
    new = classifier.load_state_dict(weights, strict=False).missing_keys
    if new != ["classifier.weight", "classifier.bias"]:
        raise ValueError(f"`changes` must leave the layers as they are, but are {changes}.")
    logger.warning(f"Newly initialised, to be trained: {', '.join(new)}.")
    model_dtype: Any = {"dtype": model.dtype}
    classifier.to(**model_dtype)
    return classifier.eval()


def _encoder_name(name: str) -> str:
    """Return the name in an encoder of the weight called `name` in a language model's decoder."""
    name = _LAYER.sub(r"model.encoder.layers.\1.directions.0.", name)
    return name.replace("model.decoder.", "model.encoder.", 1)
