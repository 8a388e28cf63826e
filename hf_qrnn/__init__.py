"""Quasi-recurrent neural networks (arXiv 1611.01576) as transformers models.

Importing registers the models with the Auto classes and does nothing else.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from .backends_qrnn import use_backend
from .cache_qrnn import QRNNCache
from .configuration_qrnn import QRNNConfig
from .modeling_qrnn import (
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
)
from .pooling_qrnn import pool
from .recurrent import QRNN, QRNNState

__version__ = "0.1.0"

AutoConfig.register("qrnn", QRNNConfig, exist_ok=True)
QRNNConfig.register_for_auto_class()
for _auto, _model in (
    (AutoModel, QRNNModel),
    (AutoModelForSeq2SeqLM, QRNNForConditionalGeneration),
    (AutoModelForCausalLM, QRNNForCausalLM),
    (AutoModelForSequenceClassification, QRNNForSequenceClassification),
):
    _auto.register(QRNNConfig, _model, exist_ok=True)
    _model.register_for_auto_class(_auto.__name__)

__all__ = [
    "QRNN",
    "QRNNCache",
    "QRNNConfig",
    "QRNNForCausalLM",
    "QRNNForConditionalGeneration",
    "QRNNForSequenceClassification",
    "QRNNModel",
    "QRNNState",
    "pool",
    "use_backend",
]
