"""An ensemble: several sequence-to-sequence models that translate as one.

At every step the members' log-probabilities are averaged and normalised again:

    log p(y_t) = mean_m log p_m(y_t) - log sum_y exp mean_m log p_m(y)

This is the log-linear ensemble, whose members are multiplied (their geometric mean); the other kind
averages probabilities. A token that one member holds impossible stays impossible. It is a
distribution again, so that scores of hypotheses are log-probabilities, as of one model.

Shapes: B batch, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

from hf_qrnn.data.same_tokenizers import SPECIAL_NAMES, TokenizerParts, check_same
from hf_qrnn.data.symbols import sides_of
from hf_qrnn.model.limits_qrnn import (
    DEFAULT_MAX_LENGTH,
    DEFAULT_OFFSET,
    DEFAULT_RATIO,
    chosen_limit,
    end_ids,
    length_rule,
    set_length_rule,
)


class EnsembleConfig(PreTrainedConfig):
    """The config of an ensemble, which is made of models and never saved."""

    model_type = "qrnn_ensemble"
    vocab_size: int = 1


class EnsembleCache:
    """The members' caches, passed as `past_key_values`; every change goes to each of them.

    Attributes:
        caches: One a member; None where the member makes its own at its first step.
    """

    # What transformers asks a cache before it compiles a step: several models are not one graph.
    is_compileable = False

    def __init__(self, caches: Sequence[Any]) -> None:
        self.caches = list(caches)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Count the steps so far."""
        first = self.caches[0]
        return 0 if first is None else int(first.get_seq_length())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Move row `beam_idx[b]` to row b."""
        for cache in self.caches:
            cache.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`."""
        for cache in self.caches:
            cache.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, so that it becomes `repeats` equal neighbours."""
        for cache in self.caches:
            cache.batch_repeat_interleave(repeats)

    def activate_past_recording(self) -> None:
        """Keep all steps from now on, so that `crop` can take them back."""
        for cache in self.caches:
            cache.activate_past_recording()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` steps."""
        for cache in self.caches:
            cache.crop(tokens_to_remove)


@dataclass
class EnsembleEncoderOutput(ModelOutput):
    """The encodings of one source by all members.

    Attributes:
        members: What each member's encoder returned.
    """

    members: tuple[ModelOutput, ...] | None = None


class EnsembleEncoder(nn.Module):
    """The encoders of all members, which read the same source."""

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        # A plain list: the modules are the ensemble's already, and would be counted twice.
        self._members = list(members)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> EnsembleEncoderOutput:
        """Encode a source (B, S) by each member."""
        encoded = [
            member.get_encoder()(
                input_ids=input_ids, attention_mask=attention_mask, return_dict=True
            )
            for member in self._members
        ]
        return EnsembleEncoderOutput(members=tuple(encoded))


class Ensemble(PreTrainedModel, GenerationMixin):
    """Several sequence-to-sequence models of one vocabulary as one model, for `generate()`.

    Greedy, beam and n-best search, limits and `no_repeat_ngram_size` work as with one model. The
    length limit is one that no member's own limit passes; every other setting of the search is the
    first member's. Members may be of any kind and in any precision.

    Args:
        models: At least one model; their ids must mean the same (`check_same_tokenizers`).

    Raises:
        ValueError: If there is no model, one is no encoder-decoder, or they end a target by
            different ids.
    """

    config_class = EnsembleConfig
    main_input_name = "input_ids"
    base_model_prefix = "ensemble"  # none of its modules has this name

    def __init__(self, models: Sequence[PreTrainedModel]) -> None:
        if not models:
            raise ValueError("`models` must hold at least one model, but is empty.")
        for model in models:
            if not model.config.is_encoder_decoder:
                raise ValueError(
                    f"`models` must hold encoder-decoders, but holds a {type(model).__name__}."
                )
        ends = [sorted(end_ids(_generation_config(model))) for model in models]
        if any(own != ends[0] for own in ends):
            different = next(own for own in ends if own != ends[0])
            raise ValueError(
                "`models` must end a target by the same ids (`eos_token_id`), but do so by "
                f"{ends[0]} and {different}."
            )
        self._starts = [_start_id(model) for model in models]
        super().__init__(
            EnsembleConfig(
                is_encoder_decoder=True,
                # Rows behind the smallest vocabulary are of no token: some models fill up theirs.
                vocab_size=min(model.config.get_text_config().vocab_size for model in models),
            )
        )
        self.members = nn.ModuleList(models)
        self.generation_config = _common_generation_config(models, self._starts[0])
        self.eval()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoders of all members as one."""
        return EnsembleEncoder(list(self.members))

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: EnsembleEncoderOutput | None = None,
        past_key_values: EnsembleCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Compute the ensemble's log-probabilities of the next tokens.

        Args:
            input_ids: (B, S). Not needed with `encoder_outputs`.
            attention_mask: (B, S), 1 where a source token is real.
            decoder_input_ids: (B, T), the first member's start token first: each reads its own.
            decoder_attention_mask: (B, at least T).
            encoder_outputs: Output of `get_encoder()`.
            past_key_values: State to go on from; changed in place.
            use_cache: Return the state.
            output_attentions: Return each member's weights (B, 1, T, S), where all have them: the
                mean of heads and layers.
            logits_to_keep: Number of last steps to compute for; 0 for all.
            kwargs: Read by nobody; generate() wants outputs by `return_dict`, which these are.

        Returns:
            `logits` (B, T, V), log-probabilities in float32, and what was asked for.
        """
        assert decoder_input_ids is not None, "a step reads the target so far"
        is_begin = past_key_values is None or past_key_values.get_seq_length() == 0
        cache = past_key_values or EnsembleCache([None] * len(self.members)) if use_cache else None
        logs: list[torch.Tensor] = []
        weights: list[torch.Tensor | None] = []
        for index, member in enumerate(self.members):
            output = member(
                input_ids=input_ids if encoder_outputs is None else None,
                attention_mask=attention_mask,
                decoder_input_ids=self._own_start(decoder_input_ids, index, is_begin),
                decoder_attention_mask=decoder_attention_mask,
                encoder_outputs=_of_member(encoder_outputs, index),
                past_key_values=None if cache is None else cache.caches[index],
                use_cache=cache is not None,
                output_attentions=output_attentions,
                return_dict=True,
            )
            if cache is not None:
                cache.caches[index] = output.past_key_values
            logs.append(self._logs(output.logits, logits_to_keep))
            weights.append(_mean_weights(output.cross_attentions) if output_attentions else None)
        found = [weight for weight in weights if weight is not None]
        return Seq2SeqLMOutput(
            logits=torch.stack(logs).mean(0).log_softmax(-1),  # (B, T, V)
            past_key_values=cache,  # type: ignore[arg-type]
            # Weights of some members alone are not the ensemble's.
            cross_attentions=tuple(found) if len(found) == len(self.members) else None,
        )

    def _logs(self, logits: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        """Compute a member's log-probabilities of the common tokens."""
        # slice(-0, None) is everything. float32 before the softmax: members may be in less.
        kept = logits[:, slice(-logits_to_keep, None)].float()
        return kept.log_softmax(-1)[..., : self.config.vocab_size]

    def _own_start(self, target: torch.LongTensor, index: int, is_begin: bool) -> torch.LongTensor:
        """Put a member's start token in the place of the ensemble's, where the target begins."""
        start, own = self._starts[0], self._starts[index]
        if start == own or not is_begin:
            return target
        changed: Any = target.clone()
        changed[:, 0] = torch.where(target[:, 0] == start, own, target[:, 0])
        return changed

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: an ensemble is its members, each of which has a folder.

        Raises:
            TypeError: Always.
        """
        raise TypeError("An ensemble must be saved by its members, but was asked to save itself.")

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # Every member has a cache of its own kind; they are made below.
        return False

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows for the beams: in transformers' way, the encodings by each member's own."""
        encoded = model_kwargs.pop("encoder_outputs")
        expanded, others = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, is_encoder_decoder=False, input_ids=input_ids, **model_kwargs
        )
        each = [
            member._expand_inputs_for_generation(  # type: ignore[operator]
                expand_size=expand_size, is_encoder_decoder=True, encoder_outputs=output
            )[1]["encoder_outputs"]
            for member, output in zip(self.members, encoded.members, strict=True)
        ]
        others["encoder_outputs"] = EnsembleEncoderOutput(members=tuple(each))
        return expanded, others

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> Any:
        """Put the caches that the members would make for themselves into `model_kwargs`."""
        if model_kwargs.get("past_key_values") is not None:
            raise ValueError("`past_key_values` must be left out with an ensemble, but is given.")
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                "`cache_implementation` must be None or 'dynamic' for an ensemble, "
                f"but is {generation_config.cache_implementation!r}."
            )
        if generation_config.use_cache is False:
            return
        caches = []
        for member in self.members:
            made: dict[str, Any] = {}
            member._prepare_cache_for_generation(  # type: ignore[operator]
                generation_config, made, *args
            )
            caches.append(made.get("past_key_values"))
        model_kwargs["past_key_values"] = EnsembleCache(caches)


def check_same_tokenizers(
    tokenizers: Sequence[PreTrainedTokenizerBase], names: Sequence[str]
) -> None:
    """Raise ValueError where two tokenizers give a text other ids, or ids another text.

    Args:
        tokenizers: Those of the members.
        names: Their models, for the error.
    """
    check_same([_parts(tokenizer) for tokenizer in tokenizers], names)


def _parts(tokenizer: PreTrainedTokenizerBase) -> TokenizerParts:
    is_fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    return TokenizerParts(
        vocabulary=tokenizer.get_vocab(),
        specials={name: getattr(tokenizer, f"{name}_token") for name in SPECIAL_NAMES},
        sides=sides_of(tokenizer),
        kind=type(tokenizer).__name__,
        backend=json.loads(tokenizer.backend_tokenizer.to_str()) if is_fast else None,
    )


def _generation_config(model: PreTrainedModel) -> GenerationConfig:
    found: GenerationConfig = model.generation_config
    return found


def _start_id(model: PreTrainedModel) -> int:
    """Return the id that a model's targets begin with, as generate() finds it."""
    config = _generation_config(model)
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    if not isinstance(start, int):
        raise ValueError(
            "`decoder_start_token_id` of a model in an ensemble must be a token id, "
            f"but is {start!r}."
        )
    return start


def _common_generation_config(models: Sequence[PreTrainedModel], start: int) -> GenerationConfig:
    """Make the settings of an ensemble: the first member's, with lengths that serve all."""
    configs = [_generation_config(model) for model in models]
    common = copy.deepcopy(configs[0])
    common.decoder_start_token_id = start
    chosen = [chosen_limit(config) for config in configs]
    fixed = [limit for limit in chosen if limit is not None]
    if len(fixed) == len(configs):
        common.max_new_tokens, common.max_length = max(fixed), None
        return common
    common.max_new_tokens, common.max_length = None, DEFAULT_MAX_LENGTH
    # The line over all lines; a fixed length is one too, that does not rise.
    rules = [
        length_rule(config) or (DEFAULT_RATIO, DEFAULT_OFFSET)
        for config, limit in zip(configs, chosen, strict=True)
        if limit is None
    ]
    ratio = max(ratio for ratio, _ in rules)
    set_length_rule(common, ratio, max([*fixed, *(offset for _, offset in rules)]))
    return common


def _of_member(encoded: EnsembleEncoderOutput | None, index: int) -> ModelOutput | None:
    return None if encoded is None or encoded.members is None else encoded.members[index]


def _mean_weights(layers: Sequence[torch.Tensor | None] | None) -> torch.Tensor | None:
    """Average attention weights (B, N, T, S) of layers over layers and heads: (B, 1, T, S)."""
    found = [layer.float().mean(1, keepdim=True) for layer in layers or () if layer is not None]
    return torch.stack(found).mean(0) if found else None
