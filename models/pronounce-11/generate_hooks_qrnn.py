"""The output layer of the generating models, and what generate() must know of a recurrent state.

Shapes: B batch, T target length, H units, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor
from transformers.generation.configuration_utils import GenerationMode

from .cache_qrnn import QRNNCache
from .configuration_qrnn import QRNNConfig
from .encoder_qrnn import shared_encoding
from .limits_qrnn import DEFAULT_MAX_LENGTH, length_rule, target_limits
from .products_qrnn import apply_linear

# What generate() hands to every step unchanged.
STEP_INPUTS = frozenset(
    ("decoder_attention_mask", "encoder_outputs", "logits_to_keep", "output_attentions")
    + ("output_hidden_states", "use_cache")
)
CACHE_KINDS = (None, "dynamic", "static")


def as_qrnn_cache(given: Any) -> QRNNCache | None:
    """Return `given` unchanged if it is None or a QRNNCache.

    Raises:
        TypeError: If it is neither None nor a QRNNCache.
    """
    # By name, not by class: the package's class and a Hub folder's may meet in one process.
    if given is None or type(given).__name__ == "QRNNCache":
        return given
    raise TypeError(f"`past_key_values` must be a QRNNCache, but is a {type(given).__name__}.")


def _check_cache_kind(kind: Any) -> None:
    if kind not in CACHE_KINDS:
        raise ValueError(
            f"`cache_implementation` must be None, 'dynamic' or 'static', but is {kind!r}."
        )


class SourceGuidance(LogitsProcessor):
    """Classifier-free guidance of an encoder-decoder: `scale` times away from another source.

        log p' = log p_other + scale (log p - log p_other)

    Both read the same target. transformers' own hands the other ids over as a language model's
    prompt; without any it takes the last token there is, and so does this.

    Args:
        model: An encoder-decoder.
        scale: 1 changes nothing.
        source: The other source (B, S) or (1, S), or None.
        source_mask: (B, S), 1 where a token is real.
        target_mask: `decoder_attention_mask` of the target that generation begins with.
    """

    def __init__(
        self,
        model: Any,
        scale: float,
        source: torch.Tensor | None,
        source_mask: torch.Tensor | None,
        target_mask: torch.Tensor | None,
    ) -> None:
        self.model, self.scale = model, scale
        self.source, self.source_mask, self.target_mask = source, source_mask, target_mask

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Guide the logits (B, V) that follow the target so far (B, T)."""
        # As transformers does for a language model without a negative prompt.
        if self.source is None:
            self.source = input_ids[:, -1:]
        rows, length = input_ids.shape

        def as_rows(tensor: torch.Tensor) -> torch.Tensor:
            # Beams of one source are neighbours.
            return tensor.repeat_interleave(rows // tensor.shape[0], dim=0)

        mask = self.target_mask
        if mask is not None:
            mask = as_rows(mask)
            # What is generated is taken for real; only a prompt has pads to hide.
            mask = torch.cat([mask, mask.new_ones(rows, length - mask.shape[1])], dim=1)
        # All of the target at every step: beams change places, and here is no cache to follow them.
        logits = self.model(
            input_ids=as_rows(self.source),
            attention_mask=None if self.source_mask is None else as_rows(self.source_mask),
            decoder_input_ids=input_ids,
            decoder_attention_mask=mask,
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        other = logits.to(scores.dtype).log_softmax(-1)
        return other + self.scale * (scores.log_softmax(-1) - other)


class LanguageModelHead(GenerationMixin):
    """The output layer of both generating models, and what generate() must know of their state.

    The methods that begin with an underscore are hooks of transformers' GenerationMixin.
    """

    config: Any
    lm_head: nn.Linear
    output_projection: nn.Linear | None
    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}
    # A recorded state can be taken back: assisted decoding is exact.
    _is_stateful = False
    _can_compile_fullgraph = True

    def _add_output_layer(self, config: QRNNConfig) -> None:
        """Add `lm_head`, behind a projection where the embedding it is tied to is not as wide."""
        width = config.hidden_size
        self.output_projection = None
        if config.tie_word_embeddings and config.embedding_size != width:
            self.output_projection = nn.Linear(width, config.embedding_size, bias=False)
        if config.tie_word_embeddings:
            width = config.embedding_size
        self.lm_head = nn.Linear(width, config.vocab_size)

    def _logits(
        self, hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor
    ) -> torch.Tensor:
        """Compute logits (B, T, V) of the last `logits_to_keep` steps (0: all), or of indices."""
        # slice(-0, None) is everything, so 0 needs no case of its own.
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = hidden_states[:, kept]
        if self.output_projection is not None:
            hidden_states = apply_linear(self.output_projection, hidden_states)
        return apply_linear(self.lm_head, hidden_states)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # A key-value cache cannot hold a recurrent state; ours is made below.
        return False

    def _extract_generation_mode_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Hand a streamer and an assistant on to a `custom_generate` function that names them.

        transformers keeps both to itself, and a function could neither serve nor refuse them.
        """
        hook = super()._extract_generation_mode_kwargs
        # By the names it has today: of a later transformers' others nothing is asked.
        given = inspect.signature(hook).bind(*args, **kwargs).arguments
        found: dict[str, Any] = hook(*args, **kwargs)
        function = given.get("custom_generate")
        if callable(function):
            wanted = inspect.signature(function).parameters
            for name in ("streamer", "assistant_model"):
                if name in wanted and given.get(name) is not None:
                    found[name] = given[name]
        return found

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """Let a length that is asked for replace the default one, whichever of the two it is.

        Otherwise `max_new_tokens` beside a default `max_length` prints a notice, and `max_length`
        beside a default `max_new_tokens` does nothing.
        """
        asked = {
            name: kwargs.get(name, getattr(generation_config, name, None))
            for name in ("max_length", "max_new_tokens", "cache_implementation")
        }
        # Here, since transformers drops the kind 'hybrid' without a word.
        _check_cache_kind(asked["cache_implementation"])
        prepared, model_kwargs = super()._prepare_generation_config(  # type: ignore[misc]
            generation_config, **kwargs
        )
        if asked["max_new_tokens"] is not None and asked["max_length"] is None:
            prepared.max_length = None
        elif asked["max_length"] is not None and asked["max_new_tokens"] is None:
            prepared.max_new_tokens = None
        # Kept for `_prepare_generated_length`, to which a default looks like a wish.
        no_length = asked["max_new_tokens"] is None and asked["max_length"] is None
        prepared._has_no_length = no_length  # type: ignore[attr-defined]
        return prepared, model_kwargs

    def _prepare_generated_length(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> GenerationConfig:
        """Let the rule that training saved allow more than the default `max_length`."""
        prepared: GenerationConfig = super()._prepare_generated_length(  # type: ignore[misc]
            generation_config, *args, **kwargs
        )
        inputs: Any = kwargs.get("inputs_tensor")
        is_free = inputs is not None and getattr(prepared, "_has_no_length", False)
        # A model whose own `max_length` was set keeps it: it is the stricter promise.
        is_default = self.generation_config.max_length == DEFAULT_MAX_LENGTH
        if self.config.is_encoder_decoder and is_free and is_default and length_rule(prepared):
            width = torch.tensor([inputs.shape[1]])
            limit = int(target_limits(self.generation_config, width))
            # One more for the start token, which `max_length` counts and the rule does not.
            prepared.max_length = max(DEFAULT_MAX_LENGTH, limit + 1)
        return prepared

    def _get_logits_processor(
        self,
        generation_config: GenerationConfig,
        *args: Any,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Guide an encoder-decoder by its source; transformers knows to guide language models."""
        scale = generation_config.guidance_scale
        negative = (negative_prompt_ids, negative_prompt_attention_mask)
        if not self.config.is_encoder_decoder or scale in (None, 1):
            return super()._get_logits_processor(  # type: ignore[misc]
                generation_config,
                *args,
                negative_prompt_ids=negative_prompt_ids,
                negative_prompt_attention_mask=negative_prompt_attention_mask,
                **kwargs,
            )
        source = kwargs.get("encoder_input_ids")
        num_rows = 1 if source is None else source.shape[0]
        if negative_prompt_ids is not None and negative_prompt_ids.shape[0] not in (1, num_rows):
            raise ValueError(
                f"`negative_prompt_ids` must have 1 or {num_rows} rows, as the inputs, "
                f"but has {negative_prompt_ids.shape[0]}."
            )
        # Without its scale, or transformers would add its own guidance to ours.
        others = copy.copy(generation_config)
        others.guidance_scale = None
        processors = super()._get_logits_processor(others, *args, **kwargs)  # type: ignore[misc]
        target_mask = (kwargs.get("model_kwargs") or {}).get("decoder_attention_mask")
        # First: what the other processors forbid must stay forbidden after guidance.
        processors.insert(0, SourceGuidance(self, scale, *negative, target_mask))
        return processors

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows for beams and for several results, but not their source, which they share."""
        encoded = model_kwargs.get("encoder_outputs")
        shares = is_encoder_decoder and hasattr(encoded, "final_states")
        source: dict[str, Any] = {}
        if shares and expand_size > 1:
            source = {
                name: model_kwargs.pop(name)
                for name in ("encoder_outputs", "attention_mask")
                if name in model_kwargs
            }
            source["encoder_outputs"] = shared_encoding(encoded, expand_size)
        ids, others = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder and not source,
            input_ids=input_ids,
            **model_kwargs,
        )
        return ids, {**others, **source}

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Put a QRNNCache into `model_kwargs`, unless the user gave one or wants none."""
        kind = generation_config.cache_implementation
        assisted = generation_mode == GenerationMode.ASSISTED_GENERATION
        if assisted and generation_config.output_attentions and not self.config.is_encoder_decoder:
            raise ValueError(
                "`output_attentions` must be False for assisted decoding of a language model, "
                "which has no attention, but is True."
            )
        given = as_qrnn_cache(model_kwargs.get("past_key_values"))
        if given is not None:
            copies = max(generation_config.num_beams, generation_config.num_return_sequences)
            self._check_given_cache(given, generation_config, assisted, batch_size, copies)
            # One row a text was given; generate() works with a row for every beam.
            if given.batch_size == batch_size:
                given.batch_repeat_interleave(copies)
            given._is_user_defined = True  # type: ignore[attr-defined]
            return
        _check_cache_kind(kind)
        if generation_config.use_cache is False:
            return
        if assisted and kind == "static":
            raise ValueError(
                "`cache_implementation` must be None or 'dynamic' for assisted decoding, "
                f"but is {kind!r}."
            )
        cache = QRNNCache(self.config.decoder_layers, static=kind == "static")
        # What the main model rejects, the assistant must take back.
        if generation_config.is_assistant:
            cache.activate_past_recording()
        model_kwargs["past_key_values"] = cache

    def _check_given_cache(
        self,
        cache: QRNNCache,
        generation_config: GenerationConfig,
        assisted: bool,
        batch_size: int,
        copies: int,
    ) -> None:
        kind = generation_config.cache_implementation
        if kind is not None:
            raise ValueError(
                "`cache_implementation` must be None when `past_key_values` is given, "
                f"but is {kind!r}."
            )
        if generation_config.use_cache is False:
            raise ValueError(
                "`use_cache` must be True when `past_key_values` is given, but is False."
            )
        num_rows, num_steps = cache.batch_size, int(cache.get_seq_length())
        # -1 is an empty cache; with beams it may already have a row for each.
        if num_rows not in (-1, batch_size, batch_size * copies):
            raise ValueError(
                f"`past_key_values` must have {batch_size} rows like the inputs, "
                f"but has {num_rows}."
            )
        if assisted and num_steps > 0:
            # transformers would feed the whole sequence again.
            raise ValueError(
                "`past_key_values` must be empty for assisted decoding, "
                f"but has taken {num_steps} steps."
            )

    def _prefill(
        self,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Run the model over the part of the prompt that the cache has not seen, in chunks.

        The prompt is the whole sequence, what the cache has seen included, unless the mask is
        longer. Left to itself, transformers goes on from an encoder-decoder's cache only where a
        `decoder_attention_mask` is given, and cuts the source's mask into chunks.
        """
        cache = model_kwargs.get("past_key_values")
        embeds = model_kwargs.get("inputs_embeds")
        # Embeddings have no ids to cut into chunks.
        by_embeds = not self.config.is_encoder_decoder and embeds is not None and is_first_iteration
        if cache is None or by_embeds:
            return super()._prefill(  # type: ignore[misc]
                input_ids, generation_config, model_kwargs, is_first_iteration, **kwargs
            )
        name = "decoder_attention_mask" if self.config.is_encoder_decoder else "attention_mask"
        mask, length = model_kwargs.get(name), input_ids.shape[1]
        mask_length = getattr(generation_config, "_mask_length", length)
        if mask is not None:
            mask_length = mask.shape[1]
        num_seen = int(cache.get_seq_length())
        # With a longer mask the ids are only the new part.
        num_new = length - num_seen if mask_length == length else length
        if num_new <= 0:
            ids = "decoder_input_ids" if self.config.is_encoder_decoder else "input_ids"
            raise ValueError(
                f"`{ids}` must be the whole sequence, longer than the {num_seen} steps of "
                f"`past_key_values`, or come with a longer `{name}`, but has {length} tokens."
            )
        size = generation_config.prefill_chunk_size or num_new
        outputs = None
        for start in range(length - num_new, length, size):
            end = min(start + size, length)
            chunk_kwargs = dict(model_kwargs)
            # Each chunk sees the mask up to its own end: the columns behind are still to come.
            if mask is not None:
                chunk_kwargs[name] = mask[:, : mask_length - length + end]
            inputs = self.prepare_inputs_for_generation(
                input_ids[:, start:end],  # type: ignore[arg-type]
                is_first_iteration=is_first_iteration,
                **chunk_kwargs,
            )
            outputs = self(**inputs, return_dict=True)  # type: ignore[operator]
        return outputs

    def _beam_search(
        self,
        input_ids: torch.LongTensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Fill up what ended early with `pad_token_id`, where transformers takes 0 for None."""
        output = super()._beam_search(  # type: ignore[misc]
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus=synced_gpus,
            **model_kwargs,
        )
        pad = getattr(generation_config, "_pad_token_tensor", None)
        if pad is None:
            return output
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        ended = torch.zeros_like(sequences, dtype=torch.bool)
        ends = getattr(generation_config, "_eos_token_tensor", None)
        if ends is not None:
            ended = torch.isin(sequences, ends)
        # An end token in the prompt ends nothing.
        ended[:, : input_ids.shape[1]] = False
        # Fill is what follows an end, and -1 where there is no end token to fill up with.
        filled = (ended.long().cumsum(1) - ended.long() > 0) | (sequences < 0)
        sequences.masked_fill_(filled, pad.to(sequences.device))
        return output

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of a step: in transformers' way, or where that is known at once."""
        plain = next_sequence_length == 1 and type(past_key_values) is QRNNCache
        plain = plain and inputs_embeds is None
        if plain and kwargs.keys() <= STEP_INPUTS and not past_key_values.is_compileable:
            state = past_key_values.layer(0).state
            # transformers brings inputs to the model's device, where the state is.
            if state is not None and state.c.device == input_ids.device:
                name = "decoder_input_ids" if self.config.is_encoder_decoder else "input_ids"
                last = input_ids[:, -1:].clone(memory_format=torch.contiguous_format)
                inputs = {name: last, "past_key_values": past_key_values, **kwargs}
                return inputs | {"attention_mask": attention_mask}
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return prepared

    def create_masks_for_generate(
        self, *args: Any, attention_mask: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        """Return the columns (B, T) of the mask that belong to the inputs: no other is needed.

        Of constant shape and strides while decoding, so that one compiled graph serves every step.
        """
        if attention_mask is None:
            return None
        columns = attention_mask[:, -inputs_embeds.shape[1] :]
        return columns.clone(memory_format=torch.contiguous_format)
