"""Modes of generate() beside searching, on both heads, and its refusals."""

import itertools
from typing import Any

import pytest
import torch
from generating import alone, config, language_model, prompts, seq2seq, source
from torch import nn
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    MaxTimeCriteria,
    StaticCache,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from hf_qrnn import QRNNCache, QRNNForCausalLM

Inputs = dict[str, torch.Tensor]
HEADS = {"seq2seq": (seq2seq, source), "language model": (language_model, prompts)}
BOTH = pytest.mark.parametrize("head", HEADS)
RECORDING: dict[str, dict[str, Any]] = {
    "assisted": {"pooling": "f", "encoder_layers": 1, "decoder_layers": 1},
    "lookup": {},
}


def made(head: str, **changes: Any) -> tuple[Any, Inputs]:
    make, inputs = HEADS[head]
    return make(**changes), inputs()


def with_target(head: str, inputs: Inputs, length: int = 6) -> Inputs:
    """A prompt of more than one step for the decoder too."""
    if head == "language model":
        return inputs
    ids = torch.randint(4, 13, (inputs["input_ids"].shape[0], length))
    ids[:, 0] = 3
    return {**inputs, "decoder_input_ids": ids}


def continued(head: str, inputs: Inputs, sequences: torch.Tensor) -> Inputs:
    """The inputs that go on from `sequences`."""
    if head == "seq2seq":
        return {**inputs, "decoder_input_ids": sequences}
    num_new = sequences.shape[1] - inputs["attention_mask"].shape[1]
    new = torch.ones(sequences.shape[0], num_new, dtype=torch.int64)
    return {
        "input_ids": sequences,
        "attention_mask": torch.cat([inputs["attention_mask"], new], 1),
    }


# ------------------------------------------------------------------ prompts and given caches


@BOTH
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 3}], ids=["whole", "chunked"])
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_generate_goes_on_from_a_given_cache(
    head: str, options: dict[str, int], mode: dict[str, int]
) -> None:
    model, inputs = made(head)
    first = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)
    cache = QRNNCache(2)
    model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, past_key_values=cache)
    seen = int(cache.get_seq_length())
    inputs = continued(head, inputs, first)
    following = model.generate(**inputs, **mode, **options, max_new_tokens=6, past_key_values=cache)
    assert torch.equal(following, model.generate(**inputs, **mode, max_new_tokens=6))
    assert seen < cache.get_seq_length() == following.shape[1] - 1


@BOTH
def test_new_tokens_alone_go_on_where_the_mask_is_longer(head: str) -> None:
    model, inputs = made(head)
    name = "decoder_attention_mask" if head == "seq2seq" else "attention_mask"
    first = with_target(head, inputs)
    ids = "decoder_input_ids" if head == "seq2seq" else "input_ids"
    mask = first[name] if head == "language model" else torch.ones_like(first[ids])
    cache = QRNNCache(2)
    model(**{**first, name: mask}, past_key_values=cache)
    new = torch.tensor([[3, 5]] * 3)
    longer = torch.cat([mask, torch.ones_like(new)], 1)
    given = {**first, ids: new, name: longer}
    whole = {**first, ids: torch.cat([first[ids], new], 1), name: longer}
    tokens = model.generate(**given, past_key_values=cache, max_new_tokens=5, min_new_tokens=5)
    expected = model.generate(**whole, max_new_tokens=5, min_new_tokens=5)
    assert torch.equal(tokens[:, 2:], expected[:, -5:])


@BOTH
@pytest.mark.parametrize("size", [1, 3, 100])
def test_prompt_may_be_read_in_chunks(head: str, size: int) -> None:
    model, inputs = made(head, decoder_kernel_sizes=3)
    inputs = with_target(head, inputs)
    whole = model.generate(**inputs, max_new_tokens=5)
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, prefill_chunk_size=size), whole)


@BOTH
def test_left_padded_prompts_equal_unpadded_ones(head: str) -> None:
    model, inputs = made(head, pooling="ifo", decoder_kernel_sizes=3)
    lengths = {"max_new_tokens": 7, "min_new_tokens": 7}
    rows = [alone(inputs, row) for row in range(3)]
    if head == "seq2seq":
        ids = torch.tensor([[3, 7, 5, 9], [0, 3, 8, 4], [0, 0, 0, 3]])
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": (ids > 0).long()}
        for row, prompt in zip(rows, ids, strict=True):
            row["decoder_input_ids"] = prompt[prompt > 0][None]
    for mode in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        together = model.generate(**inputs, **mode, **lengths)[:, -7:]
        singly = [model.generate(**row, **mode, **lengths)[:, -7:] for row in rows]
        assert torch.equal(together, torch.cat(singly))


@pytest.mark.parametrize(
    "mode", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=["", "beam", "static"]
)
def test_language_model_takes_embeddings(mode: dict[str, Any]) -> None:
    model, inputs = made("language model")
    expected = model.generate(**inputs, **mode, max_new_tokens=5)[:, 8:]
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    tokens = model.generate(inputs_embeds=embeds, **inputs, **mode, max_new_tokens=5)
    assert torch.equal(tokens, expected)


def test_encoder_outputs_may_be_given() -> None:
    model, inputs = made("seq2seq")
    encoded = model.get_encoder()(**inputs)
    for mode in ({}, {"num_beams": 3}):
        again = model.generate(
            encoder_outputs=encoded,
            attention_mask=inputs["attention_mask"],
            max_new_tokens=6,
            **mode,
        )
        assert torch.equal(again, model.generate(**inputs, max_new_tokens=6, **mode))


# ------------------------------------------------------------------ what comes back


@BOTH
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_transition_scores_are_log_probabilities(head: str, mode: dict[str, int]) -> None:
    model, inputs = made(head)
    one = alone(inputs)
    output = model.generate(
        **one, **mode, max_new_tokens=6, return_dict_in_generate=True, output_scores=True
    )
    beams = (output.beam_indices,) if mode else ()
    scores = model.compute_transition_scores(
        output.sequences, output.scores, *beams, normalize_logits=not mode
    )
    num_new = scores.shape[1]
    target = {"decoder_input_ids": output.sequences} if head == "seq2seq" else {}
    given = one if target else {"input_ids": output.sequences}
    log_probs = model(**given, **target).logits[:, -num_new - 1 : -1].log_softmax(-1)
    chosen = log_probs.gather(2, output.sequences[:, -num_new:, None])[..., 0]
    torch.testing.assert_close(scores.double(), chosen, rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("mode", ["greedy", "assisted", "lookup"])
def test_states_and_attentions_come_back_step_by_step(head: str, mode: str) -> None:
    model, inputs = made(head)
    one = alone(inputs)
    options: dict[str, Any] = {"lookup": {"prompt_lookup_num_tokens": 3}}.get(mode, {})
    if mode == "assisted":
        options = {"assistant_model": made(head, **RECORDING["assisted"])[0]}
    asked = {"output_hidden_states": True, "output_logits": True, "return_dict_in_generate": True}
    if head == "seq2seq":
        asked["output_attentions"] = True
    output = model.generate(**one, **options, **asked, max_new_tokens=6, min_new_tokens=6)
    prompt = output.sequences.shape[1] - 6
    assert len(output.logits) == 6
    target = {"decoder_input_ids": output.sequences[:, :-1]} if head == "seq2seq" else {}
    given = one if target else {"input_ids": output.sequences[:, :-1]}
    whole = model(**given, **target, output_hidden_states=True, output_attentions=True)
    logits = torch.stack(output.logits, 1).double()
    torch.testing.assert_close(logits, whole.logits[:, prompt - 1 :], rtol=1e-5, atol=1e-5)
    layers = output.decoder_hidden_states if head == "seq2seq" else output.hidden_states
    states = torch.cat([step[-1] for step in layers], 1)
    of_whole = whole.decoder_hidden_states if head == "seq2seq" else whole.hidden_states
    torch.testing.assert_close(states, of_whole[-1])
    if head == "seq2seq":
        weights = torch.cat([step[0] for step in output.cross_attentions], 2)
        torch.testing.assert_close(weights, whole.cross_attentions[0])
    assert output.past_key_values.get_seq_length() == output.sequences.shape[1] - 1


class Collector(BaseStreamer):
    """Everything that is put, in order."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


@BOTH
@pytest.mark.parametrize("mode", ["greedy", "sample", "static", "lookup"])
def test_streamer_hears_every_token(head: str, mode: str) -> None:
    model, inputs = made(head)
    modes: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sample": {"do_sample": True},
        "static": {"cache_implementation": "static"},
        "lookup": {"prompt_lookup_num_tokens": 3},
    }
    options, streamer = modes[mode], Collector()
    tokens = model.generate(**alone(inputs), **options, max_new_tokens=8, streamer=streamer)
    assert streamer.ended
    assert streamer.tokens == tokens[0].tolist()


def test_text_streamer_gives_the_text() -> None:
    class Letters:
        """A tokenizer of letters."""

        def decode(self, ids: list[int], **kwargs: Any) -> str:
            return "".join(chr(97 + token) for token in ids)

    model, inputs = made("language model")
    streamer = TextIteratorStreamer(Letters(), skip_prompt=True)
    tokens = model.generate(**alone(inputs), max_new_tokens=8, streamer=streamer)
    assert "".join(streamer) == Letters().decode(tokens[0, 8:].tolist())


# ------------------------------------------------------------------ constraints


def followed(tokens: torch.Tensor, prompt: int) -> list[list[int]]:
    """The generated tokens of every row, up to and without the first end."""
    rows = tokens[:, prompt:].tolist()
    return [row[: row.index(1)] if 1 in row else row for row in rows]


ALL_MODES = pytest.mark.parametrize(
    "mode",
    [{}, {"num_beams": 3}, {"do_sample": True}, {"cache_implementation": "static"}],
    ids=["greedy", "beam", "sample", "static"],
)


@BOTH
@ALL_MODES
def test_processors_constrain_every_search(head: str, mode: dict[str, Any]) -> None:
    model, inputs = made(head)
    prompt = 1 if head == "seq2seq" else 8
    free = {"max_new_tokens": 10, **mode}

    tokens = model.generate(**inputs, **free, no_repeat_ngram_size=2, min_new_tokens=10)
    for row in tokens[:, prompt:].tolist():
        pairs = list(itertools.pairwise(row))
        assert len(set(pairs)) == len(pairs)
    tokens = model.generate(**inputs, **free, bad_words_ids=[[7], [5, 6]], suppress_tokens=[9])
    for row in followed(tokens, prompt):
        assert not {7, 9} & set(row)
        assert (5, 6) not in itertools.pairwise(row)
    tokens = model.generate(
        **inputs, **free, begin_suppress_tokens=list(range(9)), min_new_tokens=1
    )
    assert (tokens[:, prompt] >= 9).all()
    tokens = model.generate(
        **inputs, **free, prefix_allowed_tokens_fn=lambda batch, ids: [4 + len(ids) % 3]
    )
    expected = [4 + position % 3 for position in range(prompt, tokens.shape[1])]
    assert tokens[:, prompt:].tolist() == [expected] * 3
    tokens = model.generate(**inputs, **free, sequence_bias=[[[8], 100.0]])
    assert (tokens[:, prompt:] == 8).all()


@BOTH
@ALL_MODES
def test_forced_tokens_and_lengths_hold(head: str, mode: dict[str, Any]) -> None:
    model, inputs = made(head)
    prompt = 1 if head == "seq2seq" else 8
    tokens = model.generate(**inputs, **mode, max_new_tokens=6, forced_eos_token_id=1)
    assert ((tokens[:, prompt:] == 1).any(1)).all()
    if head == "seq2seq":
        tokens = model.generate(**inputs, **mode, max_new_tokens=6, forced_bos_token_id=11)
        assert (tokens[:, 1] == 11).all()
    tokens = model.generate(**inputs, **mode, min_new_tokens=5, max_new_tokens=5)
    assert tokens.shape[1] == prompt + 5
    assert not (tokens[:, prompt : prompt + 5] == 1).any()
    assert model.generate(**inputs, **mode, max_length=prompt + 3).shape[1] <= prompt + 3
    model.lm_head.bias.data[1] = 100.0
    tokens = model.generate(**inputs, **mode, min_length=prompt + 4, max_new_tokens=9)
    assert [len(row) for row in followed(tokens, prompt)] == [4] * 3


@BOTH
@pytest.mark.parametrize("num_beams", [1, 3])
def test_stopping_criteria_stop(head: str, num_beams: int) -> None:
    model, inputs = made(head)
    start = 1 if head == "seq2seq" else 8

    class AfterThree:
        def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((ids.shape[0],), ids.shape[1] >= start + 3)

    options = {"num_beams": num_beams, "min_new_tokens": 9, "max_new_tokens": 9}
    stopping = StoppingCriteriaList([AfterThree()])
    tokens = model.generate(**inputs, **options, stopping_criteria=stopping)
    assert tokens.shape[1] == start + 3
    clock = StoppingCriteriaList([MaxTimeCriteria(0.0)])
    assert model.generate(**inputs, **options, stopping_criteria=clock).shape[1] == start + 1


@BOTH
def test_ended_beams_are_filled_up_with_pads(head: str) -> None:
    model, inputs = made(head)
    model.lm_head.bias.data[1] = 0.3
    start = 1 if head == "seq2seq" else 8
    tokens = model.generate(**inputs, num_beams=3, max_new_tokens=12, num_return_sequences=2)
    ends = 0
    for row in tokens[:, start:].tolist():
        if 1 in row:
            ends += 1
            assert not any(row[row.index(1) + 1 :])
    assert ends > 0
    assert (tokens == 0).any()


def test_language_model_without_special_tokens_runs_to_its_length() -> None:
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"))
    model = QRNNForCausalLM(config(**ids)).double().eval()
    for mode in ({}, {"num_beams": 2}, {"do_sample": True}):
        tokens = model.generate(torch.tensor([[5, 6], [7, 8]]), max_new_tokens=4, **mode)
        assert tokens.shape == (2, 6)


# ------------------------------------------------------------------ lengths that are asked for


@BOTH
@pytest.mark.parametrize("by", ["keyword", "config"])
@pytest.mark.parametrize("asked", [{"max_new_tokens": 3}, {"max_length": 11}], ids=str)
def test_one_asked_length_replaces_the_default_in_silence(
    head: str, by: str, asked: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.utils import logging

    model, inputs = made(head)
    model.lm_head.bias.data[1] = -100.0
    options = asked if by == "keyword" else {"generation_config": GenerationConfig(**asked)}
    logging.enable_propagation()
    try:
        tokens = model.generate(**inputs, **options)
    finally:
        logging.disable_propagation()
    start = 1 if head == "seq2seq" else 8
    assert tokens.shape[1] == (start + 3 if "max_new_tokens" in asked else 11)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_defaults_hold_where_no_length_is_asked_for() -> None:
    for head, length in (("seq2seq", 512), ("language model", 8 + 256)):
        model, inputs = made(head)
        model.lm_head.bias.data[1] = -100.0
        assert model.generate(**inputs).shape == (3, length)


# ------------------------------------------------------------------ refusals


@BOTH
@pytest.mark.parametrize(
    "kind", ["offloaded", "quantized", "hybrid", "offloaded_static", "sliding_window", "paged"]
)
def test_other_kinds_of_cache_are_refused(head: str, kind: str) -> None:
    model, inputs = made(head)
    rule = f"^`cache_implementation` must be None, 'dynamic' or 'static', but is '{kind}'.$"
    with pytest.raises(ValueError, match=rule):
        model.generate(**inputs, cache_implementation=kind, max_new_tokens=2)


@BOTH
@pytest.mark.parametrize("kind", ["DynamicCache", "StaticCache", "EncoderDecoderCache", "tuple"])
def test_other_caches_are_refused(head: str, kind: str) -> None:
    model, inputs = made(head)
    cache: Any = {
        "DynamicCache": DynamicCache(),
        "StaticCache": StaticCache(model.config, max_cache_len=4),
        "EncoderDecoderCache": EncoderDecoderCache(DynamicCache(), DynamicCache()),
        "tuple": (),
    }[kind]
    rule = f"^`past_key_values` must be a QRNNCache, but is a {kind}.$"
    with pytest.raises(TypeError, match=rule):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=2)
    with pytest.raises(TypeError, match=rule):
        model(**with_target(head, inputs), past_key_values=cache)


def used_cache(head: str) -> tuple[Any, Inputs, QRNNCache]:
    model, inputs = made(head)
    cache = QRNNCache(2)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=4, min_new_tokens=4)
    return model, inputs, cache


@BOTH
def test_cache_that_cannot_be_continued_is_refused(head: str) -> None:
    model, inputs, cache = used_cache(head)
    name = "decoder_input_ids" if head == "seq2seq" else "input_ids"
    with pytest.raises(ValueError, match=f"^`{name}` must be the whole sequence, longer than the"):
        model.generate(**inputs, past_key_values=cache)
    with pytest.raises(
        ValueError, match=r"^`past_key_values` must have 1 rows like the inputs, but"
    ):
        model.generate(**alone(inputs), past_key_values=cache)
    with pytest.raises(
        ValueError, match=r"^`use_cache` must be True when `past_key_values` is given"
    ):
        model.generate(**inputs, past_key_values=cache, use_cache=False)
    with pytest.raises(
        ValueError, match=r"^`cache_implementation` must be None when `past_key_val"
    ):
        model.generate(**inputs, past_key_values=cache, cache_implementation="static")


@BOTH
def test_assisted_decoding_refuses_what_it_cannot_take_back(head: str) -> None:
    model, inputs, cache = used_cache(head)
    one = alone(inputs)
    cache.batch_select_indices(torch.tensor([0]))
    lookup = {"prompt_lookup_num_tokens": 2, "max_new_tokens": 3}
    with pytest.raises(ValueError, match=r"^`past_key_values` must be empty for assisted decoding"):
        model.generate(**one, **lookup, past_key_values=cache)
    with pytest.raises(
        ValueError, match=r"^`past_key_values` must be a QRNNCache without `static`"
    ):
        model.generate(**one, **lookup, past_key_values=QRNNCache(2, static=True))
    with pytest.raises(
        ValueError, match=r"^`cache_implementation` must be None or 'dynamic' for as"
    ):
        model.generate(**one, **lookup, cache_implementation="static")
    if head == "language model":
        with pytest.raises(ValueError, match=r"^`output_attentions` must be False for assisted"):
            model.generate(**one, **lookup, return_dict_in_generate=True, output_attentions=True)


@BOTH
def test_assisted_decoding_fills_a_given_empty_cache(head: str) -> None:
    model, inputs = made(head)
    one, cache = alone(inputs), QRNNCache(2)
    tokens = model.generate(
        **one, prompt_lookup_num_tokens=2, past_key_values=cache, max_new_tokens=6
    )
    assert torch.equal(tokens, model.generate(**one, max_new_tokens=6))
    assert cache.get_seq_length() == tokens.shape[1] - 1


# ------------------------------------------------------------------ guidance


def guided_by_hand(model: Any, inputs: Inputs, other: Inputs, scale: float, steps: int) -> Any:
    """Greedy search over log p_other + scale (log p - log p_other), all anew at every step."""
    target = inputs.get("decoder_input_ids", torch.full((3, 1), 3))
    shared = {name: inputs[name] for name in inputs if name == "decoder_attention_mask"}
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for _ in range(steps):
        given = {"decoder_input_ids": target, **shared}
        log_p = model(**inputs, **given).logits[:, -1].log_softmax(-1)
        log_other = model(**other, **given).logits[:, -1].log_softmax(-1)
        best = (log_other + scale * (log_p - log_other)).argmax(-1, keepdim=True)
        target = torch.cat([target, best], 1)
        if shared:
            mask = shared["decoder_attention_mask"]
            shared = {"decoder_attention_mask": nn.functional.pad(mask, (0, 1), value=1)}
    return target


def other_source() -> Inputs:
    """Another source of other lengths, padded."""
    mask = torch.tensor([[1] * 4, [1] * 2 + [0] * 2, [0] + [1] * 3])
    return {"input_ids": torch.randint(4, 13, (3, 4)) * mask, "attention_mask": mask}


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("prompted", [False, True])
def test_guidance_leads_away_from_the_negative_source(
    prompted: bool, options: dict[str, Any]
) -> None:
    model, inputs, other = seq2seq(), source(), other_source()
    if prompted:
        ids = torch.tensor([[3, 5, 6], [0, 3, 7], [0, 0, 3]])
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": (ids > 0).long()}
    wanted = guided_by_hand(model, inputs, other, 3.0, 6)
    assert not torch.equal(wanted, guided_by_hand(model, inputs, other, 1.0, 6))
    got = model.generate(
        **inputs, **options, guidance_scale=3.0, negative_prompt_ids=other["input_ids"],
        negative_prompt_attention_mask=other["attention_mask"], max_new_tokens=6,
        eos_token_id=None, disable_compile=True,
    )  # fmt: skip
    assert torch.equal(got, wanted)


def test_guidance_without_a_negative_source_takes_the_last_token_for_one() -> None:
    model, inputs = seq2seq(), source()
    wanted = guided_by_hand(model, inputs, {"input_ids": torch.full((3, 1), 3)}, 3.0, 6)
    got = model.generate(**inputs, guidance_scale=3.0, max_new_tokens=6, eos_token_id=None)
    assert torch.equal(got, wanted)
    plain = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(model.generate(**inputs, guidance_scale=1, max_new_tokens=6), plain)


def test_guidance_keeps_beams_and_rows_apart() -> None:
    model, inputs, other = seq2seq(), source(), other_source()
    names = {"input_ids": "negative_prompt_ids", "attention_mask": "negative_prompt_attention_mask"}
    negative = {names[name]: tensor for name, tensor in other.items()}
    options = {"guidance_scale": 2.0, "num_beams": 3, "max_new_tokens": 6}
    together = model.generate(**inputs, **negative, **options)
    for row in range(3):
        some = {name: tensor[row : row + 1] for name, tensor in (inputs | negative).items()}
        single = model.generate(**some, **options)[0]
        assert torch.equal(together[row, : len(single)], single)
        assert (together[row, len(single) :] == model.config.pad_token_id).all()


def test_guidance_by_one_negative_source_is_by_it_for_every_row() -> None:
    model, inputs = seq2seq(), source()
    options = {"guidance_scale": 2.0, "num_beams": 2, "max_new_tokens": 4}
    one = torch.tensor([[4, 5, 6]])
    got = model.generate(**inputs, negative_prompt_ids=one, **options)
    wanted = model.generate(**inputs, negative_prompt_ids=one.repeat(3, 1), **options)
    assert torch.equal(got, wanted)


def test_guidance_by_a_negative_source_of_other_rows_is_refused() -> None:
    # In the second case two divides the rows.
    ids, two = torch.tensor([[4], [5]]), {k: v[:2].repeat(2, 1) for k, v in source().items()}
    for inputs, num in ((source(), 3), (two, 4)):
        rule = f"`negative_prompt_ids` must have 1 or {num} rows, as the inputs, but has 2"
        with pytest.raises(ValueError, match=rule):
            seq2seq().generate(**inputs, guidance_scale=2.0, negative_prompt_ids=ids, num_beams=2)


def test_a_language_model_is_guided_as_by_transformers() -> None:
    model, inputs = language_model(), prompts()
    options = {"guidance_scale": 2.0, "max_new_tokens": 5, "eos_token_id": None}
    wanted = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(model.generate(**inputs, **options), wanted)
