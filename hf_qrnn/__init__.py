"""Quasi-recurrent neural networks (arXiv 1611.01576) as transformers models.

Importing registers the models with the Auto classes, the pipeline task "qrnn-translation" with
`pipeline`, and does nothing else.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)
from transformers.models.auto import modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY

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
from .model.pipeline_qrnn import TASK, QRNNTranslationPipeline
from .model.pooling_qrnn import pool

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

# What `register` does not reach: Trainer and the pipelines ask these tables by name whether a model
# is of their kind, and Trainer's label smoothing would not shift the labels of a language model.
for _names, _model in (
    (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, QRNNForConditionalGeneration),
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, QRNNForCausalLM),
    (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, QRNNForSequenceClassification),
):
    _names.setdefault("qrnn", _model.__name__)

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
    "pool",
    "use_backend",
]
