"""The engine behind generate(): the same sequences, or one sentence."""

from typing import Any

import pytest
import torch
from engine_models import VOCAB_SIZE, random_config, random_model, random_sources
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from hf_qrnn import QRNNCache, QRNNForCausalLM, QRNNForConditionalGeneration
from hf_qrnn.model.limits_qrnn import RowLimits
from hf_qrnn.translation import native_generate as module
from hf_qrnn.translation.native_generate import native_generate

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "all beams": {"num_beams": 3, "num_return_sequences": 3},
    "penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "long beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "short": {"max_new_tokens": 1},
    "max_length": {"max_new_tokens": None, "max_length": 7},
}


def model_of(seed: int = 0) -> QRNNForConditionalGeneration:
    return random_model(random_config(seed), seed)


def batch(seed: int = 0, *, left: bool = False) -> dict[str, torch.Tensor]:
    sources = random_sources(seed)
    width = max(map(len, sources))
    ids = torch.zeros(len(sources), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, source in enumerate(sources):
        place = slice(width - len(source), None) if left else slice(len(source))
        ids[row, place] = torch.tensor(source)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("seed", range(4))
def test_same_sequences_as_generate(seed: int, mode: dict[str, Any]) -> None:
    model, inputs = model_of(seed), batch(seed, left=seed % 2 == 1)
    options = {"max_new_tokens": 12, **mode}
    found = model.generate(**inputs, **options, custom_generate=native_generate)
    assert torch.equal(found, model.generate(**inputs, **options))


def test_row_limits_are_kept() -> None:
    model, inputs = model_of(1), batch(1)
    limits = torch.arange(1, 7)
    for mode in ({}, {"num_beams": 3}):
        options = {"max_new_tokens": 12, **mode}
        ours, theirs = (
            model.generate(
                **inputs,
                **options,
                **custom,
                stopping_criteria=StoppingCriteriaList([RowLimits(limits)]),
            )
            for custom in ({"custom_generate": native_generate}, {})
        )
        # Behind the limit of a row transformers fills up with one end token.
        for found, expected, limit in zip(ours, theirs, limits, strict=True):
            assert torch.equal(found[: limit + 1], expected[: limit + 1])
            assert (found[limit + 1 :] == 0).all()


def test_output_of_a_beam_search_has_scores() -> None:
    model, inputs = model_of(), batch()
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 9, "return_dict_in_generate": True}
    found = model.generate(**inputs, **options, custom_generate=native_generate)
    expected = model.generate(**inputs, **options, output_scores=True)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)
    del options["num_beams"]
    found = model.generate(**inputs, **options, custom_generate=native_generate)
    assert torch.equal(found.sequences, model.generate(**inputs, **options).sequences)


def test_network_is_made_once_and_anew_for_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def read_network(*arguments: Any) -> Any:
        made.append(1)
        return original(*arguments)

    original = module.read_network
    monkeypatch.setattr(module, "read_network", read_network)
    model, inputs = model_of(2), batch(2)
    for _ in range(2):
        model.generate(**inputs, max_new_tokens=5, custom_generate=native_generate)
    assert len(made) == 1
    model.lm_head.bias.data[7] += 100.0  # by `.data`, which no version counts
    found = model.generate(**inputs, max_new_tokens=5, custom_generate=native_generate)
    assert len(made) == 2
    assert (found[:, 1:] == 7).all()


def test_without_the_library_numpy_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise OSError("not built")

    model, inputs = model_of(3), batch(3)
    monkeypatch.setattr(module, "NativeNetwork", type("Missing", (), {"__init__": missing}))
    found = model.generate(**inputs, max_new_tokens=6, custom_generate=native_generate)
    assert torch.equal(found, model.generate(**inputs, max_new_tokens=6))


class Heard(BaseStreamer):
    """Keeps what a streamer hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append("end")


@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram_size": 2}], ids=["plain", "changed"])
def test_streamer_hears_what_it_hears_of_generate(options: dict[str, Any]) -> None:
    for seed in range(4):
        model, inputs = model_of(seed), batch(seed)
        one = inputs["input_ids"][:1, : int(inputs["attention_mask"][0].sum())]
        ours, theirs = Heard(), Heard()
        given = {**options, "max_new_tokens": 9}
        found = model.generate(one, **given, streamer=ours, custom_generate=native_generate)
        assert torch.equal(found, model.generate(one, **given, streamer=theirs))
        assert ours.heard == theirs.heard
        assert len(ours.heard) > 2


def test_streamer_of_several_rows_or_beams_is_refused() -> None:
    model, inputs = model_of(), batch()
    options = {"max_new_tokens": 5, "custom_generate": native_generate, "streamer": Heard()}
    with pytest.raises(
        ValueError, match=r"`input_ids` must be one row .* is '6 with a `streamer`'"
    ):
        model.generate(**inputs, **options)
    with pytest.raises(ValueError, match="`streamer` cannot be used with beam search"):
        model.generate(inputs["input_ids"][:1], **options, num_beams=2)


def test_a_function_that_does_not_name_streamers_gets_none() -> None:
    given: list[Any] = []

    def search(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        given.append(kwargs.keys() & {"streamer", "assistant_model"})
        return input_ids

    model, inputs = model_of(), batch()
    model.generate(**inputs, streamer=Heard(), assistant_model=model, custom_generate=search)
    assert given == [set()]


class Other(LogitsProcessor):
    """Anything."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "sampling": ("`custom_generate` must be None for another search", {"do_sample": True}),
    "scores": (
        "`output_scores` must be False for the engine",
        {"return_dict_in_generate": True, "output_scores": True},
    ),
    "cache": ("`past_key_values` must be None for the engine", {"past_key_values": QRNNCache(1)}),
    "minimum": ("`logits_processor` must be .* but is 'MinLength", {"min_new_tokens": 3}),
    "processor": (
        "`logits_processor` must be .* but is 'Other'",
        {"logits_processor": LogitsProcessorList([Other()])},
    ),
    "lookup": (
        "`custom_generate` must be None for another search .* 'assisted_generation'",
        {"prompt_lookup_num_tokens": 3},
    ),
    "time": ("`stopping_criteria` must be .* but is 'MaxTimeCriteria'", {"max_time": 1.0}),
    "prompt": (
        r"`decoder_input_ids` must be one start token for the engine, but is \[3, 5\]",
        {"decoder_input_ids": torch.tensor([[3, 5]] * 6)},
    ),
    "ends": ("`eos_token_id` must be one id at most", {"eos_token_id": [1, 2]}),
}


@pytest.mark.parametrize(("sentence", "options"), REFUSED.values(), ids=REFUSED)
def test_what_the_engine_does_not_do_is_refused(sentence: str, options: dict[str, Any]) -> None:
    model, inputs = model_of(), batch()
    if "past_key_values" in options:
        options = {"past_key_values": QRNNCache(model.config.decoder_layers)}
    with pytest.raises(ValueError, match=sentence):
        model.generate(**inputs, max_new_tokens=5, **options, custom_generate=native_generate)


def test_an_assistant_is_refused() -> None:
    model, inputs = model_of(), batch()
    with pytest.raises(ValueError, match="`assistant_model` must be None for the engine, but is"):
        model.generate(**inputs, assistant_model=model, custom_generate=native_generate)


def test_models_that_the_engine_cannot_compute_are_refused() -> None:
    inputs = batch()
    for change, sentence in (
        (lambda model: model.train(), "`model.training` must be False"),
        (lambda model: model.double(), r"`model.dtype` must be torch.float32 .*float64"),
        (
            lambda model: model.model.encoder.register_forward_hook(lambda *_: None),
            "must be without hooks for the engine, .* one of 'model.encoder'",
        ),
    ):
        model: nn.Module = model_of()
        change(model)  # type: ignore[no-untyped-call]
        with pytest.raises(ValueError, match=sentence):
            model.generate(**inputs, max_new_tokens=5, custom_generate=native_generate)  # type: ignore[operator]
    language_model = QRNNForCausalLM(random_config(0)).eval()
    with pytest.raises(ValueError, match="`model` must be an encoder-decoder for the engine"):
        language_model.generate(
            inputs["input_ids"][:, :3] + 1, max_new_tokens=5, custom_generate=native_generate
        )


def test_wrong_sources_are_refused() -> None:
    model, inputs = model_of(), batch()
    encoded = model.get_encoder()(**inputs)
    with pytest.raises(ValueError, match="`input_ids` must be given to the engine"):
        model.generate(
            encoder_outputs=encoded,
            attention_mask=inputs["attention_mask"],
            max_new_tokens=5,
            custom_generate=native_generate,
        )
    inputs["attention_mask"][2] = 0
    with pytest.raises(ValueError, match="`input_ids` must be at least one real token a row"):
        model.generate(**inputs, max_new_tokens=5, custom_generate=native_generate)
    assert inputs["input_ids"].max() < VOCAB_SIZE
