"""The engine behind `model.generate(..., custom_generate=native_generate)`.

transformers prepares everything as for a search of its own: inputs, limits, processors, the
generation config. Then the engine, in C++ where its library is built, searches in place of torch.
The results are those of generate(); what the engine does not do is refused in one sentence.

Shapes: B sources, N results of each, S source length, T target length.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import (
    GenerateBeamEncoderDecoderOutput,
    GenerateEncoderDecoderOutput,
)

from hf_qrnn.data.translations import Hypothesis
from hf_qrnn.engine.decoder import NumpyDecoder
from hf_qrnn.engine.generation import GenerationSettings
from hf_qrnn.engine.native import NativeDecoder, NativeNetwork
from hf_qrnn.engine.network import Network, read_network
from hf_qrnn.engine.search import Found, follow, hypothesis, search
from hf_qrnn.engine.settings import require, settings_of
from hf_qrnn.engine.weights import Array
from hf_qrnn.model.internals_qrnn import is_hooked

# Outputs of every step, which the engine does not keep.
_STEP_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")

# Of each model its hash and its network: packing weights takes as long as a sentence.
_networks: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Network | NativeNetwork]]
_networks = weakref.WeakKeyDictionary()


@torch.no_grad()
def native_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Iterable[LogitsProcessor],
    stopping_criteria: Iterable[StoppingCriteria],
    generation_config: GenerationConfig,
    inputs_tensor: torch.Tensor | None = None,
    streamer: BaseStreamer | None = None,
    assistant_model: Any = None,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateEncoderDecoderOutput | GenerateBeamEncoderDecoderOutput:
    """Search greedily or by beams, as `generate()` does; transformers calls this.

    Weights are read from the model, and packed again when they have changed.

    Args:
        model: A QRNNForConditionalGeneration on the CPU, in float32 and evaluation mode.
        input_ids: The start token of every row.
        logits_processor: Repetition penalty and `no_repeat_ngram_size` at most.
        stopping_criteria: Limits of length, of all rows or of each (`RowLimits`), and end tokens.
        generation_config: Of this call, complete.
        inputs_tensor: Source ids (B, S).
        streamer: Hears the tokens of one source as they come.
        assistant_model: None: the engine has no use for one.
        model_kwargs: What transformers prepared besides; `attention_mask` (B, S) is read. None of
            these is a parameter, or transformers would keep it from the model.

    Returns:
        Sequences (B * N, T), filled up with `pad_token_id`; with `return_dict_in_generate` in
        transformers' output, with `sequences_scores` of a beam search.

    Raises:
        ValueError: If the engine does not do what is asked, or the model computes NaN.
    """
    _check_model(model)
    _check_wishes(generation_config, model_kwargs.get("past_key_values"), assistant_model)
    sources = _sources(inputs_tensor, model_kwargs.get("attention_mask"), model.config.vocab_size)
    settings = _settings(input_ids, logits_processor, generation_config)
    limits = _limits(stopping_criteria, len(sources))
    num_beams = generation_config.num_beams or 1
    num_return = generation_config.num_return_sequences or 1
    # Numbers that are too large end as NaN, of which the search speaks.
    with np.errstate(over="ignore", invalid="ignore"):
        network = _network_of(model)
        kind = NativeDecoder if isinstance(network, NativeNetwork) else NumpyDecoder
        decoder = kind(network, sources, num_beams)  # type: ignore[arg-type]
        if streamer is None:
            found = search(decoder, settings, limits, num_beams, num_return)
        else:
            found = [[_streamed(decoder, settings, limits, streamer)]]
    hypotheses = [one for some in found for one in some]
    sequences = _sequences(hypotheses, settings, generation_config)
    if not generation_config.return_dict_in_generate:
        return sequences
    if num_beams == 1:
        return GenerateEncoderDecoderOutput(sequences=sequences)  # type: ignore[arg-type]
    scores = torch.tensor([one.score for one in hypotheses])
    return GenerateBeamEncoderDecoderOutput(sequences=sequences, sequences_scores=scores)  # type: ignore[arg-type]


def _streamed(
    decoder: Any, settings: GenerationSettings, limits: list[int], streamer: BaseStreamer
) -> Hypothesis:
    """Search greedily for the target of one source; the streamer hears each token."""
    given = f"{len(limits)} with a `streamer`"
    require("input_ids", "one row for the engine's stream", given, len(limits) == 1)
    ids, total = [], 0.0
    for token, log_probability in follow(decoder, settings, limits[0]):
        ids.append(token)
        total += log_probability
        streamer.put(torch.tensor([token]))
    streamer.end()
    return hypothesis(Found(ids, total, total), settings.ends, limits[0])


class _StateDict:
    """The weights of a model in memory, as the engine takes those of a folder."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = model.state_dict()

    def take(self, name: str, *shape: int) -> Array:
        """Return a weight as float32."""
        tensor = self._tensors.get(name)
        fits = tensor is not None and tensor.dtype == torch.float32 and tensor.shape == shape
        rule = f"have `{name}` in float32 of shape {list(shape)} for the engine"
        if tensor is None or not fits:
            given = "has none" if tensor is None else f"has {tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"`model` must {rule}, but {given}.")
        array: Array = tensor.numpy()
        return array

    take_matrix = take  # a model in memory has no int8 weights


def _network_of(model: nn.Module) -> Network | NativeNetwork:
    """Return the model as the engine computes it, made anew where weights have changed."""
    state = model.state_dict().values()
    content = tuple(int(torch.hash_tensor(x).numpy()) for x in state)
    kept = _networks.get(model)
    if kept is not None and kept[0] == content:
        return kept[1]
    config: Any = model.config
    weights: Any = _StateDict(model)
    network: Network | NativeNetwork = read_network(
        settings_of(json.loads(config.to_json_string())), weights
    )
    try:
        network = NativeNetwork(network)  # type: ignore[arg-type]
    except OSError:
        # NumPy computes with the model's own memory, which may change.
        return network
    _networks[model] = (content, network)
    return network


def _check_model(model: Any) -> None:
    translates = model.config.is_encoder_decoder
    require("model", "an encoder-decoder for the engine", type(model).__name__, translates)
    for name, wanted, given in (
        ("device", "cpu", model.device.type),
        ("dtype", "torch.float32", str(model.dtype)),
        ("training", "False", str(model.training)),
    ):
        require(f"model.{name}", f"{wanted} for the engine", given, wanted == given)
    for name, module in model.named_modules():
        if is_hooked(module):
            raise ValueError(
                f"`model` must be without hooks for the engine, which calls no module, but has "
                f"one of '{name}'."
            )


def _check_wishes(config: GenerationConfig, cache: Any, assistant: Any) -> None:
    given = type(assistant).__name__
    require("assistant_model", "None for the engine", given, assistant is None)
    mode = config.get_generation_mode().value
    fits = mode in ("greedy_search", "beam_search")
    require("custom_generate", "None for another search than greedy or beams", mode, fits)
    for name in _STEP_OUTPUTS:
        wanted = config.return_dict_in_generate and getattr(config, name)
        require(name, "False for the engine", wanted, not wanted)
    if getattr(cache, "_is_user_defined", False):
        raise ValueError("`past_key_values` must be None for the engine, but is given.")


def _sources(
    inputs: torch.Tensor | None, mask: torch.Tensor | None, vocab_size: int
) -> list[list[int]]:
    """Return the ids of every source, without its pads."""
    if inputs is None or inputs.is_floating_point() or inputs.dim() != 2 or (inputs < 0).any():
        # transformers makes ids of -100 where an encoding is given alone.
        raise ValueError("`input_ids` must be given to the engine, which encodes them itself.")
    if mask is None:
        mask = torch.ones_like(inputs)
    # Where every row has a copy of its source's, one is enough.
    mask = mask[:: max(1, mask.shape[0] // inputs.shape[0])].bool()
    rows = [row[real].tolist() for row, real in zip(inputs, mask, strict=True)]
    for row in rows:
        require("input_ids", "at least one real token a row", row, len(row) > 0)
        require("input_ids", f"in [0, {vocab_size})", max(row), max(row) < vocab_size)
    return rows


def _settings(
    input_ids: torch.Tensor, processors: Iterable[LogitsProcessor], config: GenerationConfig
) -> GenerationSettings:
    """Return the engine's settings of the search, whatever limits the length excepted."""
    start = input_ids[:1, :1]
    if input_ids.shape[1] != 1 or not bool((input_ids == start).all()):
        given = input_ids[0].tolist()
        raise ValueError(
            f"`decoder_input_ids` must be one start token for the engine, but is {given}."
        )
    changes: dict[str, Any] = {}
    for processor in processors:
        if type(processor) is RepetitionPenaltyLogitsProcessor:
            changes["repetition_penalty"] = processor.penalty
        elif type(processor) is NoRepeatNGramLogitsProcessor:
            changes["no_repeat_ngram_size"] = processor.ngram_size
        else:
            rule = "a repetition penalty or `no_repeat_ngram_size` for the engine"
            require("logits_processor", rule, type(processor).__name__, False)
    ends = getattr(config, "_eos_token_tensor", None)
    ids = () if ends is None else tuple(ends.flatten().tolist())
    require("eos_token_id", "one id at most for the engine", list(ids), len(ids) <= 1)
    for name, value in (("early_stopping", False), ("length_penalty", 1.0)):
        given = getattr(config, name)
        changes[name] = value if given is None else given
    return GenerationSettings(start=int(start), ends=ids, **changes)


def _limits(criteria: Iterable[StoppingCriteria], num_sources: int) -> list[int]:
    """Return the most tokens of each source's target."""
    limits = torch.full((num_sources,), 2**31)
    for own in _each_limit(criteria):
        limits = torch.minimum(limits, own)
    require("max_new_tokens", "at least 1", int(limits.min()), int(limits.min()) >= 1)
    found: list[int] = limits.tolist()
    return found


def _each_limit(criteria: Iterable[StoppingCriteria]) -> Iterator[torch.Tensor]:
    for one in criteria:
        if isinstance(one, MaxLengthCriteria):
            yield torch.tensor(one.max_length - 1)  # the start token counts in this one
        # By name, not by class: the package's class and a Hub folder's may meet in one process.
        elif type(one).__name__ == "RowLimits":
            yield one.limits  # type: ignore[attr-defined]
        elif not isinstance(one, EosTokenCriteria):
            rule = "limits of length and end tokens for the engine"
            require("stopping_criteria", rule, type(one).__name__, False)


def _sequences(
    hypotheses: list[Hypothesis], settings: GenerationSettings, config: GenerationConfig
) -> torch.Tensor:
    rows = [
        [settings.start, *one.ids, *(() if one.is_cut else settings.ends)] for one in hypotheses
    ]
    pad: Any = getattr(config, "_pad_token_tensor", None)
    # Without an end token no row is shorter than another.
    fill = 0 if pad is None else int(pad)
    sequences = torch.full((len(rows), max(map(len, rows))), fill)
    for row, ids in zip(sequences, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return sequences
