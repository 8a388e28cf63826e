"""The ground of all heads: the rules all models share, and the bases of single heads.

The heads themselves are in `modeling_qrnn.py`. transformers copies the file of a saved model's
class with all it imports, and `auto_map` names that file for every head.

Shapes: B batch, S source length, T target length, E embedding, H units, L layers, V vocabulary.
"""

from __future__ import annotations

import inspect
import os
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.generic import can_return_tuple

from .attention_qrnn import attention_implementation
from .cache_qrnn import QRNNCache
from .checks_qrnn import check_stored_weights, embed
from .configuration_qrnn import QRNNConfig, fitting_config
from .decoder_qrnn import QRNNDecoder
from .encoder_qrnn import QRNNEncoder, QRNNEncoderOutput
from .generate_hooks_qrnn import as_qrnn_cache
from .keywords_qrnn import check_keywords
from .quantization_qrnn import check_quantized, dequantized, leave_unpacked


def embed_tokens(
    model: Any,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    name: str = "input_ids",
) -> torch.Tensor:
    """Look up or check the inputs of `model`: (B, T, E)."""
    sizes = (model.config.vocab_size, model.config.embedding_size)
    return embed(model.shared, sizes, input_ids, inputs_embeds, name)


def wanted(config: QRNNConfig, name: str, given: bool | None) -> bool:
    """Tell whether an output is asked for: in the call, else by the field of `config`."""
    return bool(getattr(config, name, False) if given is None else given)


class Registration(NamedTuple):
    """The facts a head states of itself, from which all that must know of it is made.

    Attributes:
        auto_class: The Auto class that loads it.
        pipeline_tag: The task on the Hub.
        names: transformers' table of models of its kind, which Trainer and the pipelines ask:
            Trainer's label smoothing would not shift the labels of a language model.
    """

    auto_class: str
    pipeline_tag: str
    names: str | None = None


class QRNNPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and the rules all heads share."""

    registration: ClassVar[Registration]  # of what an Auto class loads
    config: QRNNConfig
    config_class = QRNNConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _input_embed_layer = "shared"
    _no_split_modules = ["QRNNEncoderLayer", "QRNNDecoderLayer"]

    def __init__(self, config: QRNNConfig, *inputs: Any, **kwargs: Any) -> None:
        config.check()  # fields may have been assigned since it was made
        super().__init__(config, *inputs, **kwargs)

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *args: Any, **kwargs: Any
    ) -> str:
        # Before transformers looks, which would fetch the kernel that is asked for.
        return attention_implementation(attn_implementation)

    def get_correct_attn_implementation(
        self, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        """Return the implementation of attention to use, "sdpa" unless "eager" is asked for."""
        return attention_implementation(requested_attention)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights from N(0, 1/fan_in); set forget biases to `forget_bias`, other biases to 0.

        Paper: not given. Here: a variance that keeps pre-activations near 1, where tanh and sigma
        bend but do not saturate; and a forget gate that starts open, so that the state of a
        character model outlives a word from the first update.
        """
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                bias = torch.zeros_like(module.bias)
                # At the layer it would be too late: what is initialised is not written to again.
                bias[slice(*getattr(module, "forget_rows", (0,)))] = self.config.forget_bias
                init.copy_(module.bias, bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=float(self.config.initializer_range))
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load the model of a folder or of the Hub, as for any model of transformers."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        check_quantized(model)
        leave_unpacked(model)
        # transformers puts a repository's `custom_generate/` in the place of the method. Here it is
        # for those who ask for it by name: the method is this class's.
        vars(model).pop("generate", None)
        return loaded

    @staticmethod
    def _load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
        """Make floats of int8 rows; refuse other integers, which transformers casts silently."""
        load = PreTrainedModel._load_pretrained_model
        # By the names it has today: of a later transformers' others nothing is asked.
        bound = inspect.signature(load).bind(*args, **kwargs)
        given = bound.arguments
        quantizer = getattr(given.get("load_config"), "hf_quantizer", "unknown")
        # A quantiser that stored its own weights reads them itself.
        if quantizer is None or getattr(quantizer, "pre_quantized", True) is False:
            floats = dequantized(given.get("state_dict"), given.get("checkpoint_files"))
            if floats is not None:
                # Without files, or weights that stay on disk would be those of the files.
                given.update(state_dict=floats, checkpoint_files=None)
        model, stored = given.get("model"), (given.get("state_dict"), given.get("checkpoint_files"))
        if quantizer is None and model is not None:  # quantised weights are integers by right
            check_stored_weights(model.state_dict(), *stored)
        return load(*bound.args, **bound.kwargs)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Save weights, config and the code, so that every Auto class loads the folder anywhere."""
        if self._auto_class is None:  # the base of one head: no Auto class would load just this
            vars(self.config).pop("auto_map", None)
        else:
            # Saving writes the entry of the saved class alone: every head must find its own.
            self.config.auto_map = auto_map()
        super().save_pretrained(save_directory, **kwargs)


class QRNNTextEncoder(nn.Module):
    """The encoder together with the embedding it borrows: what `get_encoder` returns."""

    main_input_name = "input_ids"

    def __init__(self, config: QRNNConfig, shared: nn.Embedding, encoder: QRNNEncoder) -> None:
        super().__init__()
        self.config, self.shared, self.encoder = config, shared, encoder

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> QRNNEncoderOutput | tuple[torch.Tensor, ...]:
        """Encode `input_ids` (B, S) or `inputs_embeds` (B, S, E)."""
        for name in ("labels", "logits_to_keep"):  # generate() hands on what is the decoder's
            kwargs.pop(name, None)
        check_keywords(self, kwargs, attention_mask)
        embeds = embed_tokens(self, input_ids, inputs_embeds)
        wants = wanted(self.config, "output_hidden_states", output_hidden_states)
        output: QRNNEncoderOutput = self.encoder(embeds, attention_mask, wants)
        return output.to_tuple() if return_dict is False else output


class QRNNDecoderModel(QRNNPreTrainedModel):
    """The language model without its output layer: the decoder without V and attention."""

    def __init__(self, config: QRNNConfig) -> None:
        config = fitting_config(config, is_encoder_decoder=False, is_decoder=True)
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.embedding_size)
        self.decoder = QRNNDecoder(config, reads_source=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: QRNNCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Compute hidden states (B, T, H) and the state; see `QRNNForCausalLM.forward`."""
        check_keywords(self, kwargs, attention_mask, past_key_values)
        embeds = embed_tokens(self, input_ids, inputs_embeds)
        if past_key_values is None and wanted(self.config, "use_cache", use_cache):
            past_key_values = QRNNCache(self.config.decoder_layers)
        output: BaseModelOutputWithPastAndCrossAttentions = self.decoder(
            embeds,
            attention_mask,
            past_key_values=as_qrnn_cache(past_key_values),
            output_hidden_states=wanted(self.config, "output_hidden_states", output_hidden_states),
        )
        return output


class QRNNEncoderModel(QRNNPreTrainedModel):
    """The classifier without its output layer: the encoder."""

    def __init__(self, config: QRNNConfig) -> None:
        config = fitting_config(config, is_encoder_decoder=False, is_decoder=False)
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.embedding_size)
        self.encoder = QRNNEncoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> QRNNEncoderOutput:
        """Compute the encoding (B, S, H) of `input_ids` (B, S) or `inputs_embeds` (B, S, E)."""
        check_keywords(self, kwargs, attention_mask)
        embeds = embed_tokens(self, input_ids, inputs_embeds)
        hidden = wanted(self.config, "output_hidden_states", output_hidden_states)
        output: QRNNEncoderOutput = self.encoder(embeds, attention_mask, hidden)
        return output


def heads() -> tuple[type[QRNNPreTrainedModel], ...]:
    """List the classes that Auto classes load, those of this copy of the code."""
    folder = __name__.rpartition(".")[0]
    return tuple(
        kind
        for kind in QRNNPreTrainedModel.__subclasses__()
        if "registration" in vars(kind) and kind.__module__.rpartition(".")[0] == folder
    )


def auto_map() -> dict[str, str]:
    """Make what every saved config.json has: all heads' classes, so that each finds its own."""
    return {
        "AutoConfig": "configuration_qrnn.QRNNConfig",
        **{kind.registration.auto_class: f"modeling_qrnn.{kind.__name__}" for kind in heads()},
    }
