"""The configuration of the quasi-recurrent models (arXiv 1611.01576), and its checks.

A mistake is one sentence: "`name` must be <rule>, but is <value>."
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .pool_kinds_qrnn import POOL_KINDS

_logger = logging.getLogger(__name__)

ATTENTION_LAYERS = ("last", "all")
CLASSIFIER_POOLING = ("last", "mean", "max", "mean_max")
POOL_BACKENDS = ("auto", "native", "triton", "torch")
# Of release 0.1.0, still taken.
_OLD_NAMES = {"pool_backend": ("compiled",)}

# What transformers and others write into a config.json beside the fields: no reason for a warning.
_NOT_OURS = (
    "auto_map model_type torch_dtype num_labels quantization_config output_attentions"
    " tokenizer_class task_specific_params finetuning_task prefix torchscript"
)
_SIZES = (
    "vocab_size embedding_size hidden_size encoder_layers decoder_layers num_attention_heads"
    " feed_forward_size"
)
_SWITCHES = (
    "locked_dropout dense_connections encoder_causal encoder_bidirectional reverse_source residual"
    " rms_norm attention_scaling tie_word_embeddings use_cache is_encoder_decoder is_decoder"
)
_FIELD_TYPES: tuple[tuple[str, Any, str], ...] = (
    (_SIZES, int, "an integer"),
    (_SWITCHES, bool, "a boolean"),
    ("pooling attention_layers classifier_pooling pool_backend", str, "a string"),
    ("zoneout dropout classifier_dropout initializer_range forget_bias", (int, float), "a number"),
)
_OPTIONAL_INTEGERS = {
    "encoder_kernel_sizes": "an integer, a list of integers or None",
    "decoder_kernel_sizes": "an integer, a list of integers or None",
    "eos_token_id": "an integer, a list of integers or None",
    "pad_token_id": "an integer or None",
    "bos_token_id": "an integer or None",
    "decoder_start_token_id": "an integer or None",
}
# In this order: each may rely on those before it.
_CHECKS = (
    "validate_types",
    "validate_sizes",
    "validate_choices",
    "validate_combinations",
    "validate_token_ids",
)


@strict
class QRNNConfig(PreTrainedConfig):
    """The definition of a QRNN model; the defaults are the paper's translation model (section 3.3).

    Args:
        vocab_size: Number of tokens; 187 code points in the paper.
        embedding_size: Width of the embeddings. Paper: not given. Here: 320, the hidden size.
        hidden_size: Units of every layer.
        encoder_layers, decoder_layers: Depth. Decoder layer l reads the final state of encoder
            layer l + encoder_layers - decoder_layers (Eq. 7).
        encoder_kernel_sizes, decoder_kernel_sizes: Filter widths k, an int, a list with one entry
            per layer, or None for [6, 2, 2, ...] in the encoder and [2, 2, ...] in the decoder.
        pooling: A name of `POOL_KINDS`; the paper has "f", "fo" and "ifo" (Eqs. 3 to 5).
        zoneout: Probability that a forget gate is set to 1 in training (Eq. 6).
        dropout: Probability of zeroing each layer's own output in training.
        embedding_dropout: The same for the embeddings; None means `dropout`.
        locked_dropout: Zero the same channels at all steps of a call, row by row (variational
            dropout, Gal and Ghahramani 2016). Paper: fresh ones at every step.
        dense_connections: Concatenate every layer's input to its output (section 2.1).
        encoder_causal: Mask the encoder's convolutions. Paper: not masked for translation.
        encoder_bidirectional: Half of the units read each way, concatenated after every layer.
        reverse_source: Read the source from its last token to its first, as in the paper.
        residual: Add every layer's input to its output.
        rms_norm: Normalise every layer's input and the last layer's output by RMSNorm.
        attention_layers: "last" attends in the last decoder layer (Eq. 8); "all" puts a pre-norm
            residual block of attention behind every decoder layer instead.
        num_attention_heads: Heads of the attention over the encoder's states.
        attention_scaling: Scale scores by 1/sqrt(head size). Paper: not scaled.
        feed_forward_size: Inner width of a gated feed-forward block after every layer; 0 for none.
        classifier_pooling: "last" classifies the encoder's last state, "mean" their mean, "max" the
            largest value of every unit, "mean_max" both side by side.
        classifier_dropout: Probability of zeroing a unit of what is classified, in training, once
            for all steps, so that it acts on a mean too.
        tie_word_embeddings: Share the embedding with the output layer, through a projection when
            the widths differ.
        initializer_range: Standard deviation of the embeddings; every other weight is drawn with
            standard deviation fan_in^-1/2.
        forget_bias: Initial bias of the forget gate; 1 keeps about 73 % of the state per step.
        pool_backend: "auto" (the fastest that works), "native", "triton" or "torch"; no effect on
            the weights.

    Raises:
        ValueError: If a field or a combination of fields is impossible; the sentence names it.
    """

    model_type = "qrnn"
    _auto_class = "AutoConfig"  # so that a saved config has its code beside it
    # What Trainer cannot put together from batches of other lengths.
    keys_to_ignore_at_inference = ["past_key_values", "decoder_attentions", "cross_attentions"]
    attribute_map = {"num_hidden_layers": "encoder_layers"}

    vocab_size: int = 187
    embedding_size: int = 320
    hidden_size: int = 320
    encoder_layers: int = 4
    decoder_layers: int = 4
    encoder_kernel_sizes: int | list[int] | None = None
    decoder_kernel_sizes: int | list[int] | None = None
    pooling: str = "fo"
    zoneout: float | int = 0.0
    dropout: float | int = 0.0
    embedding_dropout: float | int | None = None
    locked_dropout: bool = False
    dense_connections: bool = False
    encoder_causal: bool = False
    encoder_bidirectional: bool = False
    reverse_source: bool = True
    residual: bool = False
    rms_norm: bool = False
    attention_layers: str = "last"
    num_attention_heads: int = 1
    attention_scaling: bool = False
    feed_forward_size: int = 0
    classifier_pooling: str = "last"
    classifier_dropout: float | int = 0.0
    tie_word_embeddings: bool = False
    initializer_range: float | int = 0.2
    forget_bias: float | int = 1.0
    use_cache: bool = True
    pool_backend: str = "auto"
    is_encoder_decoder: bool = True
    is_decoder: bool = False
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 3
    decoder_start_token_id: int | None = 3

    def __post_init__(self, **kwargs: Any) -> None:
        # What is no field arrives here, transformers' own names for fields too.
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                setattr(self, name, kwargs.pop(alias))
        # Before `strict` looks, so that a mistake is one sentence and a plain ValueError.
        self.check()
        super().__post_init__(**kwargs)

    @property
    def output_attentions(self) -> bool | None:
        """The attention weights are returned unless forward says otherwise."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | None) -> None:
        # transformers wants "eager" for weights; here they come with any `attn_implementation`.
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        """Allow weights to be asked for, whatever computes attention without them."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make the config of a saved one; warn of fields this release does not know."""
        known = {field.name for field in dataclasses.fields(cls)} | set(cls.attribute_map)
        unknown = [
            name
            for name in config_dict
            if name not in known and name not in _NOT_OURS.split() and not name.startswith("_")
        ]
        if unknown:
            _logger.warning(
                "The config has fields that this release of hf_qrnn does not know and that change "
                "nothing: %s.",
                ", ".join(f"`{name}`" for name in unknown),
            )
        return super().from_dict(config_dict, **kwargs)

    def check(self) -> None:
        """Check all fields, also those assigned since the config was made.

        Raises:
            ValueError: If a field or a combination of fields is impossible; the sentence names it.
        """
        for check in _CHECKS:
            getattr(self, check)()

    def kernel_sizes(self, part: str) -> list[int]:
        """Return the filter width of every layer of `part`, "encoder" or "decoder"."""
        num_layers: int = getattr(self, f"{part}_layers")
        sizes: int | list[int] | None = getattr(self, f"{part}_kernel_sizes")
        if sizes is None:
            # Section 3.3 of the paper: 6 in the first encoder layer, 2 in all others.
            return [6 if part == "encoder" and layer == 0 else 2 for layer in range(num_layers)]
        return list(sizes) if isinstance(sizes, list) else [sizes] * num_layers

    def validate_types(self) -> None:
        """Check the type of every field; True is not an integer and 1 is not a boolean."""
        for names, types, rule in _FIELD_TYPES:
            for name in names.split():
                value = getattr(self, name)
                is_bool = isinstance(value, bool)
                _require(name, rule, value, isinstance(value, types) and is_bool == (types is bool))
        for name, rule in _OPTIONAL_INTEGERS.items():
            value = getattr(self, name)
            items = value if isinstance(value, list) and "list" in rule else [value]
            fits = value is None or all(type(item) is int for item in items)
            _require(name, rule, value, fits)
        value = self.embedding_dropout
        fits = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        _require("embedding_dropout", "a number or None", value, fits)

    def validate_sizes(self) -> None:
        """Check that sizes and depths are positive and filter widths fit the depth."""
        for name in _SIZES.split():
            value, least = getattr(self, name), 0 if name == "feed_forward_size" else 1
            _require(name, f"at least {least}", value, value >= least)
        for part in ("encoder", "decoder"):
            name, num_layers = f"{part}_kernel_sizes", getattr(self, f"{part}_layers")
            sizes_given = getattr(self, name)
            widths = self.kernel_sizes(part)
            rule = f"an integer of at least 1 or a list of {num_layers} of them"
            _require(
                name,
                rule,
                sizes_given,
                len(widths) == num_layers and all(width >= 1 for width in widths),
            )

    def validate_choices(self) -> None:
        """Check that named choices are known and probabilities are in [0, 1)."""
        choices = {
            "pooling": tuple(POOL_KINDS),
            "attention_layers": ATTENTION_LAYERS,
            "classifier_pooling": CLASSIFIER_POOLING,
            "pool_backend": POOL_BACKENDS,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            known = value in allowed or value in _OLD_NAMES.get(name, ())
            _require(name, "one of " + ", ".join(map(repr, allowed)), value, known)
        for name in ("zoneout", "dropout", "embedding_dropout", "classifier_dropout"):
            value = getattr(self, name)
            _require(name, "in [0, 1)", value, value is None or 0.0 <= value < 1.0)
        value = self.initializer_range
        _require("initializer_range", "positive", value, math.isfinite(value) and value > 0)
        _require("forget_bias", "finite", self.forget_bias, math.isfinite(self.forget_bias))

    def validate_combinations(self) -> None:
        """Check fields that exclude or bound each other."""
        hidden, heads = self.hidden_size, self.num_attention_heads
        _require(
            "dense_connections",
            "False when `residual` is True",
            self.dense_connections,
            not (self.dense_connections and self.residual),
        )
        _require(
            "hidden_size",
            "even when `encoder_bidirectional` is True",
            hidden,
            not (self.encoder_bidirectional and hidden % 2),
        )
        _require(
            "num_attention_heads",
            f"a divisor of `hidden_size` ({hidden})",
            heads,
            heads > 0 and hidden % heads == 0,
        )
        if self.is_encoder_decoder:
            # Every decoder layer reads the final state of an encoder layer (Eq. 7).
            _require(
                "encoder_layers",
                f"at least `decoder_layers` ({self.decoder_layers})",
                self.encoder_layers,
                self.encoder_layers >= self.decoder_layers,
            )

    def validate_token_ids(self) -> None:
        """Check that token ids are None or in the vocabulary."""
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, list) else [] if value is None else [value]
            rule = f"None or in [0, `vocab_size`) = [0, {self.vocab_size})"
            _require(name, rule, value, all(0 <= token < self.vocab_size for token in ids))
        # generate() takes the first of the list, which must be there.
        ends = self.eos_token_id
        _require("eos_token_id", "None or a list of at least one token id", ends, ends != [])


def own_config(config: QRNNConfig, **changes: Any) -> QRNNConfig:
    """Copy the config for one head: heads of one config must not change each other's."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def fitting_config(config: QRNNConfig, **values: Any) -> QRNNConfig:
    """Return `config` itself where it has `values`: a head and its base share one, as usual."""
    if all(getattr(config, name) == value for name, value in values.items()):
        return config
    return own_config(config, **values)


def _require(name: str, rule: str, value: object, holds: bool) -> None:
    if not holds:
        raise ValueError(f"`{name}` must be {rule}, but is {value!r}.")
