"""Quasi-recurrent models for transformers (Bradbury et al. 2016, arXiv 1611.01576).

One base layout for all heads, so that any checkpoint loads into any of them with every common
weight: `model.shared`, `model.encoder.layers.*`, `model.decoder.layers.*`, `lm_head`, `classifier`.
`base_qrnn.py` has what they stand on.

Shapes: B batch, S source length, T target length, E embedding, H units, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import Seq2SeqModelOutput, SequenceClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from .base_qrnn import (
    QRNNDecoderModel,
    QRNNEncoderModel,
    QRNNPreTrainedModel,
    QRNNTextEncoder,
    Registration,
    auto_map,
    embed_tokens,
    heads,
    wanted,
)
from .cache_qrnn import QRNNCache
from .checks_qrnn import check_rows, check_shape
from .configuration_qrnn import QRNNConfig, fitting_config, own_config
from .decoder_qrnn import QRNNDecoder, mask_of_source
from .encoder_qrnn import QRNNEncoder, QRNNEncoderOutput, pool_steps, pooled_size
from .generate_hooks_qrnn import LanguageModelHead, as_qrnn_cache
from .keywords_qrnn import check_keywords
from .limits_qrnn import DEFAULT_MAX_LENGTH
from .losses_qrnn import (
    QRNNCausalLMOutput,
    QRNNSeq2SeqLMOutput,
    next_token_loss,
    share_of_batch,
    shift_tokens_right,
    target_loss,
)
from .padding_qrnn import real_steps
from .step_plan_qrnn import plan_step
from .step_qrnn import step

LANGUAGE_MODEL_MAX_NEW_TOKENS = 256


class QRNNModel(QRNNPreTrainedModel):
    """Encoder and decoder without a head (section 2.3 of 1611.01576)."""

    registration = Registration("AutoModel", "feature-extraction")

    def __init__(self, config: QRNNConfig) -> None:
        config = fitting_config(config, is_encoder_decoder=True, is_decoder=False)
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.embedding_size)
        self.encoder = QRNNEncoder(config)
        self.decoder = QRNNDecoder(config, reads_source=True)
        self.post_init()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder with its embedding: `model.get_encoder()(input_ids)`."""
        if modality is not None:  # of images or sounds: transformers says that there is none
            return super().get_encoder(modality)
        return QRNNTextEncoder(self.config, self.shared, self.encoder)

    def get_decoder(self) -> QRNNDecoder:
        """Return the decoder's stack."""
        return self.decoder

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: QRNNCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """Encode the source and decode the target.

        Args:
            input_ids: (B, S). Or `inputs_embeds` (B, S, E). Not needed with `encoder_outputs`.
            attention_mask: (B, S), 1 where a source token is real.
            decoder_input_ids: (B, T), shifted right. Or `decoder_inputs_embeds` (B, T, E).
            decoder_attention_mask: (B, at least T); its last T columns belong to the inputs.
            encoder_outputs: Output of the encoder, with `final_states`.
            past_key_values: State to go on from; changed in place.
            use_cache: Return the state; never in training with labels.

        Returns:
            Hidden states (B, T, H), the state, and where asked all hidden states and the
            attention weights (B, N, T, S) of the attending layers, in source order.
        """
        check_keywords(self, kwargs, attention_mask, past_key_values, decoder_attention_mask)
        hidden = wanted(self.config, "output_hidden_states", output_hidden_states)
        weights = wanted(self.config, "output_attentions", output_attentions)
        wants = (hidden, weights, getattr(self.config, "_attn_implementation", None) == "eager")
        target = embed_tokens(self, decoder_input_ids, decoder_inputs_embeds, "decoder_input_ids")
        if encoder_outputs is None:
            embeds = embed_tokens(self, input_ids, inputs_embeds)
            encoded: QRNNEncoderOutput = self.encoder(embeds, attention_mask, hidden)
        else:
            encoded = _as_encoder_output(encoder_outputs, target.shape[0], self.config)
        if past_key_values is None and wanted(self.config, "use_cache", use_cache):
            past_key_values = QRNNCache(self.config.decoder_layers)
        decoded = self.decoder(
            target,
            decoder_attention_mask,
            encoded,
            attention_mask,
            as_qrnn_cache(past_key_values),
            *wants,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=() if weights else None,  # no layer attends to the target
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
        )


def _as_encoder_output(
    given: ModelOutput | tuple[torch.Tensor, ...], batch: int, config: QRNNConfig
) -> QRNNEncoderOutput:
    # By attribute, not by class: the package's class and a Hub folder's may meet in one process.
    finals = getattr(given, "final_states", None)
    if finals is None:
        raise ValueError(
            "`encoder_outputs` must have `final_states`, as `get_encoder()` returns them, "
            f"but is a {type(given).__name__} without."
        )
    encoded: QRNNEncoderOutput = given  # type: ignore[assignment]
    each = getattr(encoded, "rows_each", 1)
    name = "encoder_outputs.last_hidden_state"
    if each > 1 and batch % each:
        raise ValueError(
            f"`{name}` must have one row for every {each} of the decoder's, but those are {batch}."
        )
    check_rows(name, encoded.last_hidden_state, batch // each)
    shape = (batch // each, config.encoder_layers, config.hidden_size)
    check_shape("encoder_outputs.final_states", encoded.final_states, shape)
    return encoded


class QRNNForConditionalGeneration(LanguageModelHead, QRNNPreTrainedModel, GenerationMixin):
    """The sequence-to-sequence model of section 3.3: translation, summarisation, spelling."""

    registration = Registration(
        "AutoModelForSeq2SeqLM", "translation", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"
    )

    def __init__(self, config: QRNNConfig) -> None:
        config = own_config(config, is_encoder_decoder=True, is_decoder=False)
        super().__init__(config)
        self.model = QRNNModel(config)
        self._add_output_layer(config)
        self.post_init()
        if self.generation_config.max_length in (None, 20):
            # The general default of 20 cuts a sentence of characters after three words.
            self.generation_config.max_length = DEFAULT_MAX_LENGTH

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder with its embedding."""
        return self.model.get_encoder() if modality is None else super().get_encoder(modality)

    def get_decoder(self) -> QRNNDecoder:
        """Return the decoder's stack."""
        return self.model.get_decoder()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Make decoder inputs (B, T) of labels (B, T): shifted right behind the start token."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        for name, value in (("decoder_start_token_id", start), ("pad_token_id", pad)):
            if value is None:
                raise ValueError(f"`{name}` must be a token id to train from labels, but is None.")
        return shift_tokens_right(labels, pad, start)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: QRNNCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        smoothing: float = 0.0,
        **kwargs: Any,
    ) -> QRNNSeq2SeqLMOutput:
        """Compute logits of the target, and with `labels` (B, T) the loss; see `QRNNModel.forward`.

        Args:
            labels: (B, T), -100 where nothing counts; the decoder's inputs come from them too.
            logits_to_keep: Number of last steps to compute logits for; 0 for all.
            num_items_in_batch: Divide the loss by this number of tokens; see `token_loss`.
            smoothing: Share of the target spread over the vocabulary.
        """
        check_keywords(self, kwargs, attention_mask, past_key_values, decoder_attention_mask)
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        wants = (output_hidden_states, output_attentions)
        absent = (labels, inputs_embeds, decoder_inputs_embeds)
        if past_key_values is not None and all(x is None for x in absent):
            cache, masks = past_key_values, (decoder_attention_mask, attention_mask)
            output = self._step(decoder_input_ids, cache, masks, encoder_outputs, wants)
            if output is not None:
                return output
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self._logits(outputs.last_hidden_state, logits_to_keep)
        losses = target_loss(logits, labels, num_items_in_batch, smoothing)
        others = {name: x for name, x in outputs.items() if name != "last_hidden_state"}
        return QRNNSeq2SeqLMOutput(**losses._asdict(), logits=logits, **others)

    def _step(
        self,
        token_ids: torch.Tensor | None,
        cache: QRNNCache,
        masks: tuple[torch.Tensor | None, torch.Tensor | None],
        encoded: Any,
        wants: tuple[bool | None, bool | None],
    ) -> QRNNSeq2SeqLMOutput | None:
        """Do what `forward` does for one token a row, faster; None where it is not as simple.

        `masks` are those of decoder and encoder; `wants` whether hidden states and attention
        weights are wanted.
        """
        names = ("output_hidden_states", "output_attentions")
        if any(wanted(self.config, *pair) for pair in zip(names, wants, strict=True)):
            return None
        if getattr(self.config, "_attn_implementation", None) == "eager":
            return None
        if encoded is None or token_ids is None:
            return None
        plan = plan_step(self.model, QRNNModel, token_ids, cache)
        if plan is None:
            return None
        rows = token_ids.shape[0]
        encoded = _as_encoder_output(encoded, rows, self.config)
        if real_steps(masks[0], 1, rows, name="decoder_attention_mask") is not None:
            return None
        source_mask = mask_of_source(masks[1], encoded, rows)
        states = step(plan, token_ids, cache, source_mask, "decoder_input_ids")
        return QRNNSeq2SeqLMOutput(
            logits=self._logits(states, 0),
            past_key_values=cache,  # type: ignore[arg-type]
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
        )


class QRNNForCausalLM(LanguageModelHead, QRNNPreTrainedModel, GenerationMixin):
    """The language model of section 3.2: the decoder alone, h = o . c in its last layer too."""

    registration = Registration(
        "AutoModelForCausalLM", "text-generation", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    )

    def __init__(self, config: QRNNConfig) -> None:
        config = own_config(config, is_encoder_decoder=False, is_decoder=True)
        super().__init__(config)
        self.model = QRNNDecoderModel(config)
        self._add_output_layer(config)
        self.post_init()
        if self.generation_config.max_length in (None, 20):
            self.generation_config.max_new_tokens = LANGUAGE_MODEL_MAX_NEW_TOKENS

    def get_decoder(self) -> QRNNDecoder:
        """Return the stack of layers."""
        return self.model.decoder

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: QRNNCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        smoothing: float = 0.0,
        **kwargs: Any,
    ) -> QRNNCausalLMOutput:
        """Compute logits (B, T, V) of the next tokens.

        Args:
            input_ids: (B, T). Or `inputs_embeds` (B, T, E).
            attention_mask: (B, at least T), 1 where a token is real; its last T columns count.
            past_key_values: State to go on from; changed in place.
            labels: (B, T), usually the input ids; shifted here, -100 does not count.
            use_cache: Return the state.
            num_items_in_batch: Divide the loss by this number of tokens; see `token_loss`.
            smoothing: Share of the target spread over the vocabulary.
            kwargs: `shift_labels` (B, T), aligned with the logits: `labels` of a sequence that was
                split. No parameter, or Trainer would want every batch to have them.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        check_keywords(self, kwargs, attention_mask, past_key_values)
        absent = (labels, shift_labels, inputs_embeds)
        hidden = wanted(self.config, "output_hidden_states", output_hidden_states)
        if past_key_values is not None and not hidden and all(x is None for x in absent):
            output = self._step(input_ids, past_key_values, attention_mask)
            if output is not None:
                return output
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache if labels is None and shift_labels is None else False,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self._logits(outputs.last_hidden_state, logits_to_keep)
        losses = next_token_loss(logits, labels, shift_labels, num_items_in_batch, smoothing)
        return QRNNCausalLMOutput(
            **losses._asdict(),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def _step(
        self,
        token_ids: torch.Tensor | None,
        cache: QRNNCache,
        attention_mask: torch.Tensor | None,
    ) -> QRNNCausalLMOutput | None:
        """Do what `forward` does for one token a row, faster; None where it is not as simple."""
        if token_ids is None:
            return None
        plan = plan_step(self.model, QRNNDecoderModel, token_ids, cache)
        if plan is None:
            return None
        if real_steps(attention_mask, 1, token_ids.shape[0]) is not None:
            return None
        logits = self._logits(step(plan, token_ids, cache), 0)
        return QRNNCausalLMOutput(logits=logits, past_key_values=cache)


class QRNNForSequenceClassification(QRNNPreTrainedModel):
    """The sentiment model of section 3.1: the encoder and a linear layer on its encoding."""

    registration = Registration(
        "AutoModelForSequenceClassification",
        "text-classification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    )

    def __init__(self, config: QRNNConfig) -> None:
        config = own_config(config, is_encoder_decoder=False, is_decoder=False)
        super().__init__(config)
        self.model = QRNNEncoderModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(pooled_size(config), int(config.num_labels or 0))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Compute logits (B, num_labels) of each row.

        Args:
            input_ids: (B, S). Or `inputs_embeds` (B, S, E).
            attention_mask: (B, S), 1 where a token is real.
            labels: (B,) class ids; (B,) numbers for one label; (B, num_labels) of 0 and 1 for
                `problem_type="multi_label_classification"`.
            num_items_in_batch: Divide the loss by this number of labels, not by those here.
        """
        check_keywords(self, kwargs, attention_mask)
        encoded = self.model(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        states = encoded.last_hidden_state
        mask = real_steps(attention_mask, states.shape[1])
        logits = self.classifier(self.dropout(pool_steps(states, mask, self.config)))
        loss = None
        if labels is not None:
            check_rows("labels", labels, logits.shape[0])
            loss = self.loss_function(
                labels=labels,
                pooled_logits=logits,
                config=self.config,
                num_items_in_batch=num_items_in_batch,
            )
            if self.config.problem_type != "single_label_classification":
                loss = share_of_batch(loss, labels.numel(), num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states
        )


HEADS = heads()
"""The classes that Auto classes load."""

for _head in HEADS:  # so that a saved model has its code beside it
    _head.register_for_auto_class(_head.registration.auto_class)

AUTO_MAP = auto_map()
"""What every saved config.json has: all heads' classes, so that each finds its own."""

__all__ = [
    "QRNNDecoderModel",
    "QRNNEncoderModel",
    "QRNNForCausalLM",
    "QRNNForConditionalGeneration",
    "QRNNForSequenceClassification",
    "QRNNModel",
    "QRNNPreTrainedModel",
]
