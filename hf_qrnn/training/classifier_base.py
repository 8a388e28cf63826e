"""Begins a classifier with a trained language model or classifier: `--init_from MODEL`.

The embedding, the layers and the tokenizer are the base's; the output layer is new, unless the base
is a classifier of the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from hf_qrnn.data.hub_replies import hub_answer, split_revision
from hf_qrnn.data.tokenization import load_tokenizer
from hf_qrnn.model.modeling_qrnn import QRNNForSequenceClassification
from hf_qrnn.model.warm_start import classifier_from_language_model

from .checkpoint import CheckpointFolder
from .fine_tuning import Base, changes_of, find_base, rebuilt
from .options import RunOptions

_OUTPUT = "classifier."


def find_classifier_base(options: RunOptions, checkpoints: CheckpointFolder) -> Base | None:
    """Load what a classifier begins with, as `find_base` does.

    Raises:
        ValueError: If there is no such model, it is no QRNN language model or classifier, or the
            run that is resumed began with another.
    """
    return find_base(options, checkpoints, load=_load, head=QRNNForSequenceClassification)


def begin_classifier(base: Base, options: Any, labels: Sequence[str], **fields: Any) -> Base:
    """Prepare the base's model to tell `labels` apart.

    Args:
        base: What `find_classifier_base` found.
        options: Fields of QRNNConfig that were asked for; the layers must be those of `base`.
        labels: The labels in the order of their ids.
        fields: More fields of QRNNConfig.

    Raises:
        ValueError: If an option asks for other layers (names it).
    """
    changes = changes_of(base, options)
    known: Any = base.model.config.id2label
    same = [known.get(index) for index in range(len(known))] == list(labels)
    weights = base.model.state_dict()
    model = rebuilt(base.model, {**changes, **fields}, {}, strict=False)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(_OUTPUT) or (same and tensor.shape == shapes[name])
    }
    model.load_state_dict(kept, strict=False)
    return Base(model, base.tokenizer, base.name, base.is_on_hub)


def _load(name: str) -> Base:
    """Load a classifier, or a language model as one."""
    kind = "a folder with a saved QRNN language model or classifier, or the name of one on the Hub"
    path, revision = name, None
    if not Path(name).exists():
        path, revision = split_revision(name)
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **options)
        saved = (config.architectures or [""])[0]
        if config.model_type != "qrnn":
            raise ValueError(f"it is a {saved or config.model_type}")
        model: Any
        if saved == QRNNForSequenceClassification.__name__:
            model = QRNNForSequenceClassification.from_pretrained(path, **options)
        else:
            model = classifier_from_language_model(path, **options)
        tokenizer = load_tokenizer(path)
    except Exception as error:  # `tokenizers` raises plain Exception for a broken file
        answered = None if Path(path).exists() else hub_answer(error, path, revision)
        reason = answered or str(error).strip().split("\n", 1)[0].rstrip(".") + "."
        raise ValueError(f"`init_from` must be {kind}, but is {name!r}: {reason}") from error
    # float32, whatever it was saved in: small steps of the optimiser would be lost in less.
    weights = {key: tensor.to(torch.float32) for key, tensor in model.state_dict().items()}
    return Base(rebuilt(model, {}, weights), tokenizer, name, not Path(name).exists())
