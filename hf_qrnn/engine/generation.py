"""Reads generation_config.json: what to search for, and how long a target may become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_qrnn.data.json_files import read_json

from .settings import require

# No length that somebody chose: 20 is transformers' own default, 512 that of the model.
_NOT_CHOSEN = (None, 20, 512)
MOST_TOKENS = 2**31 - 1
"""The most tokens of any target, whatever is asked for."""
# Fields that change nothing in greedy and beam search, or that the caller of the engine gives.
_IDLE = (
    "max_length max_new_tokens max_length_ratio max_length_offset length_penalty early_stopping"
    " usual_source_chars"
    " repetition_penalty no_repeat_ngram_size decoder_start_token_id bos_token_id eos_token_id"
    " pad_token_id do_sample num_beams num_return_sequences temperature top_k top_p min_p top_h"
    " typical_p epsilon_cutoff eta_cutoff use_cache cache_implementation cache_config max_cache_len"
    " output_attentions output_hidden_states output_scores output_logits return_dict_in_generate"
    " transformers_version disable_compile compile_config prefill_chunk_size"
)
# Values by which transformers says that a field does nothing.
_NEUTRAL = {
    "min_length": 0,
    "min_new_tokens": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    "low_memory": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "is_assistant": False,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
}


@dataclass(frozen=True)
class GenerationSettings:
    """The fields of a generation config that decide what is found.

    Attributes:
        start: The token before the first.
        ends: Tokens that end a target.
        max_new_tokens: A length that somebody chose; else `ratio` and `offset` give it.
        ratio, offset: Tokens of a target for each token of its source, and those added.
        length_penalty, early_stopping, repetition_penalty, no_repeat_ngram_size: As transformers
            has them.
        usual_source_chars: Characters of the longest source that is usual in the training data.
        num_beams: Beams that are best for the model; nothing here takes them by itself.
    """

    start: int
    ends: tuple[int, ...]
    max_new_tokens: int | None = None
    ratio: float = 2.0
    offset: int = 50
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    usual_source_chars: int | None = None
    num_beams: int = 1

    def limit(self, source_length: int) -> int:
        """Return the most tokens of a target, as `limits_qrnn.target_limits` does."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return min(MOST_TOKENS, max(1, math.ceil(source_length * self.ratio) + self.offset))


def read_generation(folder: Path, config: Mapping[str, Any], vocab_size: int) -> GenerationSettings:
    """Read generation_config.json, or what config.json says in its place.

    Raises:
        ValueError: If it is damaged, or the engine cannot do what a field says.
    """
    path = folder / "generation_config.json"
    ids = ("decoder_start_token_id", "bos_token_id", "eos_token_id")
    fields = read_json(path) if path.is_file() else {name: config.get(name) for name in ids}
    given = {name: value for name, value in fields.items() if value is not None}
    for name, value in given.items():
        fits = name in _IDLE.split() or name.startswith("_") or _NEUTRAL.get(name, ...) == value
        require(name, "absent for the engine, which does not have it", value, fits)
    start: Any = given.get("decoder_start_token_id", given.get("bos_token_id"))
    _check_id("decoder_start_token_id", start, vocab_size)
    ends = given.get("eos_token_id", [])
    ends = ends if isinstance(ends, list) else [ends]
    for end in ends:
        _check_id("eos_token_id", end, vocab_size)
    early = given.get("early_stopping", False)
    fits = isinstance(early, bool) or early == "never"
    require("early_stopping", "a boolean or 'never'", early, fits)
    ngram = given.get("no_repeat_ngram_size", 0)
    fits = type(ngram) is int and ngram >= 0
    require("no_repeat_ngram_size", "an integer of at least 0", ngram, fits)
    beams = given.get("num_beams", 1)
    require("num_beams", "an integer of at least 1", beams, type(beams) is int and beams > 0)
    penalty = _number(given, "repetition_penalty", 1.0)
    # With a number outside, scores in float32 become infinite.
    rule = "positive, from 1e-06 to 1e+06"
    require("repetition_penalty", rule, penalty, 1e-6 <= penalty <= 1e6)
    power = _number(given, "length_penalty", 1.0)
    require("length_penalty", "a number from -4 to 4", power, abs(power) <= 4)
    ratio, offset = _length_rule(given)
    return GenerationSettings(
        start=start,
        ends=tuple(ends),
        max_new_tokens=_chosen_length(given),
        ratio=ratio,
        offset=offset,
        length_penalty=power,
        early_stopping=early,
        repetition_penalty=penalty,
        no_repeat_ngram_size=ngram,
        usual_source_chars=given.get("usual_source_chars"),
        num_beams=beams,
    )


def _check_id(name: str, value: Any, vocab_size: int) -> None:
    fits = type(value) is int and 0 <= value < vocab_size
    require(name, f"in [0, `vocab_size`) = [0, {vocab_size})", value, fits)


def _number(given: Mapping[str, Any], name: str, default: float) -> float:
    value = given.get(name, default)
    # An integer of JSON may be too large for a float.
    fits = type(value) in (int, float) and abs(value) < 1e308
    require(name, "a number below 1e+308", value, fits)
    return float(value)


def _chosen_length(given: Mapping[str, Any]) -> int | None:
    for name, least in (("max_new_tokens", 1), ("max_length", 0)):
        value = given.get(name)
        fits = value is None or (type(value) is int and least <= value < 2**31)
        require(name, f"an integer of at least {least}", value, fits)
    if given.get("max_new_tokens") is not None:
        return int(given["max_new_tokens"])
    length = given.get("max_length")
    # The start token counts in this one.
    return None if length in _NOT_CHOSEN else max(1, int(length or 0) - 1)


def _length_rule(given: Mapping[str, Any]) -> tuple[float, int]:
    # transformers makes such a file anew from config.json, and loses what it does not know.
    if given.get("_from_model_config"):
        return 2.0, 50
    names = ("max_length_ratio", "max_length_offset")
    values: list[Any] = [given.get(name) for name in names]
    if values == [None, None]:
        return 2.0, 50
    for name, value in zip(names, values, strict=True):
        fits = type(value) in (int, float) and 0 <= value <= MOST_TOKENS
        require(name, f"a number in [0, {MOST_TOKENS}]", value, fits)
    return float(values[0] or 0), int(values[1] or 0)
