"""Quasi-recurrent neural networks (arXiv 1611.01576) as transformers models.

Importing enters names in tables of others and does nothing more: it prints, downloads and compiles
nothing and asks no GPU. It registers
- the models with the Auto classes, and their names in transformers' tables of tasks,
- the pipeline task "qrnn-translation",
- the operations `hf_qrnn::pool_v2` and `hf_qrnn::pool_backward_v2` with torch (pooling_qrnn.py),
- `QRNNState` and `QRNNCache` with torch, as containers of tensors that graphs and files may hold.
"""

import transformers
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from transformers.models.auto import modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY

from .data.symbols import encode_sources, encode_targets, train_symbol_tokenizer
from .data.tokenization import load_tokenizer, make_byte_tokenizer, train_character_tokenizer
from .layer import QRNN, QRNNState
from .model.backends_qrnn import use_backend
from .model.cache_qrnn import QRNNCache
from .model.configuration_qrnn import QRNNConfig
from .model.modeling_qrnn import (
    HEADS,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
)
from .model.pipeline_qrnn import TASK, QRNNTranslationPipeline
from .model.pooling_qrnn import pool
from .model.warm_start import classifier_from_language_model
from .translation.translator import load_translator

__version__ = "0.2.0"

AutoConfig.register("qrnn", QRNNConfig, exist_ok=True)
QRNNConfig.register_for_auto_class()
for _model in HEADS:
    _auto = getattr(transformers, _model.registration.auto_class)
    _auto.register(QRNNConfig, _model, exist_ok=True)
    _model.register_for_auto_class(_auto.__name__)
    if _model.registration.names is not None:  # `register` does not reach it
        getattr(modeling_auto, _model.registration.names).setdefault("qrnn", _model.__name__)

if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=QRNNTranslationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
    )

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
