"""Quasi-recurrent neural networks (arXiv 1611.01576) as transformers models.

Importing enters names in tables of others and does nothing more: it prints, downloads and compiles
nothing and asks no GPU. It imports neither torch nor transformers; a name below is imported when it
is first used. Before anybody can look into a table (registration.py), it has
- the models, in the Auto classes and in transformers' tables of names,
- the pipeline task "qrnn-translation",
- the operations `hf_qrnn::pool_v2` and `hf_qrnn::pool_backward_v2`, in torch (pooling_qrnn.py),
- `QRNNState` and `QRNNCache`, in torch, as containers of tensors that graphs and files may hold.
"""

import importlib
from typing import TYPE_CHECKING

from .registration import watch

if TYPE_CHECKING:
    from .data.symbols import encode_sources, encode_targets, train_symbol_tokenizer
    from .data.tokenization import load_tokenizer, make_byte_tokenizer, train_character_tokenizer
    from .layer import QRNN, QRNNState
    from .model.backends_qrnn import use_backend
    from .model.cache_qrnn import QRNNCache
    from .model.configuration_qrnn import QRNNConfig
    from .model.modeling_qrnn import (
        QRNNForCausalLM,
        QRNNForConditionalGeneration,
        QRNNForSequenceClassification,
        QRNNModel,
    )
    from .model.pipeline_qrnn import QRNNTranslationPipeline
    from .model.pooling_qrnn import pool
    from .model.warm_start import classifier_from_language_model
    from .translation.translator import load_translator

__version__ = "0.2.0"

__all__ = [
    "QRNN",
    "QRNNCache",
    "QRNNConfig",
    "QRNNForCausalLM",
    "QRNNForConditionalGeneration",
    "QRNNForSequenceClassification",
    "QRNNModel",
    "QRNNState",
    "QRNNTranslationPipeline",
    "classifier_from_language_model",
    "encode_sources",
    "encode_targets",
    "load_tokenizer",
    "load_translator",
    "make_byte_tokenizer",
    "pool",
    "train_character_tokenizer",
    "train_symbol_tokenizer",
    "use_backend",
]

# As the imports above; a test compares both.
_HOMES = {
    "QRNN": "layer",
    "QRNNCache": "model.cache_qrnn",
    "QRNNConfig": "model.configuration_qrnn",
    "QRNNForCausalLM": "model.modeling_qrnn",
    "QRNNForConditionalGeneration": "model.modeling_qrnn",
    "QRNNForSequenceClassification": "model.modeling_qrnn",
    "QRNNModel": "model.modeling_qrnn",
    "QRNNState": "layer",
    "QRNNTranslationPipeline": "model.pipeline_qrnn",
    "classifier_from_language_model": "model.warm_start",
    "encode_sources": "data.symbols",
    "encode_targets": "data.symbols",
    "load_tokenizer": "data.tokenization",
    "load_translator": "translation.translator",
    "make_byte_tokenizer": "data.tokenization",
    "pool": "model.pooling_qrnn",
    "train_character_tokenizer": "data.tokenization",
    "train_symbol_tokenizer": "data.symbols",
    "use_backend": "model.backends_qrnn",
}
_WINGS = ("data", "layer", "model", "translation")

if not TYPE_CHECKING:  # a type checker would believe that any name is here

    def __getattr__(name: str) -> object:
        """Import a name of `__all__`, or a wing, when it is first asked for (PEP 562)."""
        if name in _WINGS:
            return importlib.import_module(f".{name}", __name__)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_WINGS})


watch()
