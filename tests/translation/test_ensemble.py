"""hf_qrnn.translation.ensemble: several models search as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForConditionalGeneration
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.data.tokenization import (
    make_byte_tokenizer,
    train_character_tokenizer,
    train_word_tokenizer,
)
from hf_qrnn.model.limits_qrnn import set_length_rule, target_limits
from hf_qrnn.translation.ensemble import Ensemble, check_same_tokenizers
from hf_qrnn.translation.search import Hypothesis, generate_hypotheses
from hf_qrnn.translation.translator import Translator, load_translator

VOCABULARY = 12
SOURCES = [[4, 5, 6, 1], [7, 1], [11, 10, 9, 8, 4, 5, 1]]
PAD, END, START = 0, 1, 3


def qrnn(seed: int, **changes: Any) -> QRNNForConditionalGeneration:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "embedding_size": 8,
        "hidden_size": 8,
        "encoder_layers": 2,
        "decoder_layers": 2,
    }
    sizes |= {"initializer_range": 1.0}  # lively: what it writes depends on what it reads
    config = QRNNConfig(
        **{
            **sizes,
            "vocab_size": VOCABULARY,
            "pad_token_id": PAD,
            "eos_token_id": END,
            "bos_token_id": START,
            "decoder_start_token_id": START,
            **changes,
        }
    )
    model = QRNNForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight *= 8  # a sure model, whose tokens differ
    return model.eval()


def marian(seed: int, vocab_size: int = VOCABULARY) -> MarianMTModel:
    """Make a Transformer that begins its targets with the pad token, as Marian does."""
    torch.manual_seed(seed)
    config = MarianConfig(
        vocab_size=vocab_size,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=128,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=START,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
        init_std=1.0,
    )
    return MarianMTModel(config).eval()


def t5(seed: int) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY + 3,  # filled up with rows of no token
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 3
        model.lm_head.weight.normal_(std=1.0)
    return model


KINDS: dict[str, Any] = {
    "two": lambda: [qrnn(0), qrnn(1)],
    "three sizes": lambda: [qrnn(0), qrnn(1, hidden_size=12), qrnn(2, encoder_layers=3)],
    "two starts": lambda: [qrnn(0), qrnn(1, decoder_start_token_id=PAD)],
    "kinds": lambda: [qrnn(0), marian(1), t5(2)],
    "a Transformer first": lambda: [t5(2), qrnn(0)],
}


@torch.no_grad()
def next_token(
    models: Sequence[PreTrainedModel], source: Sequence[int], target: Sequence[int]
) -> torch.Tensor:
    """Compute the ensemble's log-probabilities by whole forward passes, one model at a time."""
    logs = []
    for model in models:
        start = model.config.decoder_start_token_id
        logits = model(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([[start, *target]]),
            use_cache=False,
        ).logits[0, -1]
        logs.append(torch.log(logits.double().softmax(-1))[:VOCABULARY])
    product = torch.exp(sum(logs) / len(logs))  # type: ignore[arg-type]
    return torch.log(product / product.sum())


def slow_beam_search(
    models: Sequence[PreTrainedModel], source: Sequence[int], limit: int, num_beams: int
) -> list[Hypothesis]:
    """Search without a cache: beams by sums, finished hypotheses by sums over lengths."""
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[tuple[float, tuple[int, ...], float]] = []
    for step in range(1, limit + 1):
        grown = []
        for target, score in beams:
            for token, log in enumerate(next_token(models, source, target).tolist()):
                grown.append(((*target, token), score + log))
        grown.sort(key=lambda found: -found[1])
        ended = [(t, s) for t, s in grown[:num_beams] if t[-1] == END or step == limit]
        finished += [(score / len(target), target, score) for target, score in ended]
        beams = [(t, s) for t, s in grown if t[-1] != END][:num_beams]
    finished.sort(key=lambda found: -found[0])
    return [
        Hypothesis([x for x in target if x != END], score, target[-1] != END, total)
        for score, target, total in finished[:num_beams]
    ]


def same(found: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> bool:
    return [(x.ids, x.is_cut) for x in found] == [(x.ids, x.is_cut) for x in expected] and (
        [x.score for x in found] == pytest.approx([x.score for x in expected], rel=1e-5, abs=1e-5)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_search_of_an_ensemble_is_the_slow_loop(kind: str) -> None:
    models = KINDS[kind]()
    found = generate_hypotheses(Ensemble(models), SOURCES, max_new_tokens=9)
    for source, [hypothesis] in zip(SOURCES, found, strict=True):
        target: list[int] = []
        score = 0.0
        while len(target) < 9 and END not in target:
            logs = next_token(models, source, target)
            target.append(int(logs.argmax()))
            score += float(logs.max())
        assert hypothesis.ids == [token for token in target if token != END]
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        assert hypothesis.is_cut is (END not in target)


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_of_an_ensemble_is_the_slow_loop(kind: str) -> None:
    models = KINDS[kind]()
    found = generate_hypotheses(
        Ensemble(models), SOURCES, num_beams=3, num_return_sequences=1, max_new_tokens=5
    )
    for source, [hypothesis] in zip(SOURCES, found, strict=True):
        expected = slow_beam_search(models, source, limit=5, num_beams=3)[0]
        assert same([hypothesis], [expected])
        assert hypothesis.log_probability == pytest.approx(expected.log_probability, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 3}])
@pytest.mark.parametrize("make", [qrnn, marian, t5])
@pytest.mark.parametrize("count", [1, 2])
def test_an_ensemble_of_one_model_is_that_model(
    count: int, make: Any, options: dict[str, int]
) -> None:
    model = make(3)
    alone = generate_hypotheses(model, SOURCES, max_new_tokens=12, **options)
    together = generate_hypotheses(Ensemble([model] * count), SOURCES, max_new_tokens=12, **options)
    for found, expected in zip(together, alone, strict=True):
        assert same(found, expected)
    assert len({tuple(hypothesis.ids) for found in alone for hypothesis in found}) > 1


@pytest.mark.parametrize("num_beams", [1, 4])
def test_results_do_not_depend_on_the_batch(num_beams: int) -> None:
    ensemble = Ensemble(KINDS["two starts"]())
    together = generate_hypotheses(ensemble, SOURCES, num_beams=num_beams)
    alone = generate_hypotheses(ensemble, SOURCES, num_beams=num_beams, batch_size=1)
    for found, expected in zip(together, alone, strict=True):
        assert same(found, expected)


def test_repeated_ngrams_are_kept_out_of_an_ensemble() -> None:
    models = [qrnn(0), qrnn(1)]
    models[0].generation_config.no_repeat_ngram_size = 1
    with torch.no_grad():
        for model in models:
            model.lm_head.bias[7] += 100.0  # for ever, were it allowed to
    for num_beams in (1, 3):
        found = generate_hypotheses(
            Ensemble(models), SOURCES, num_beams=num_beams, max_new_tokens=6
        )
        for [hypothesis] in found:
            assert len(set(hypothesis.ids)) == len(hypothesis.ids)
            assert hypothesis.ids[0] == 7


def test_without_a_state_the_targets_are_the_same() -> None:
    ensemble = Ensemble(KINDS["kinds"]())
    source = torch.tensor([SOURCES[0]])
    for options in ({}, {"num_beams": 3}):
        fixed = {"max_length": None, "max_new_tokens": 8, "do_sample": False, **options}
        assert torch.equal(
            ensemble.generate(source, **fixed), ensemble.generate(source, use_cache=False, **fixed)
        )


def test_members_may_have_other_precisions() -> None:
    models = [qrnn(0), qrnn(1).to(torch.bfloat16)]
    whole = qrnn(1)
    with torch.no_grad():
        for weight in whole.parameters():
            weight.copy_(weight.bfloat16())
    logits = [
        Ensemble(pair)(
            input_ids=torch.tensor([SOURCES[0]]), decoder_input_ids=torch.tensor([[START, 5]])
        ).logits
        for pair in (models, [models[0], whole])
    ]
    assert logits[0].dtype == torch.float32
    assert torch.allclose(logits[0], logits[1], atol=0.05)
    assert torch.allclose(logits[0].exp().sum(-1), torch.ones(1, 2))


def test_a_step_taken_back_was_never_taken() -> None:
    ensemble = Ensemble([qrnn(0), t5(1)])
    source = torch.tensor(SOURCES[:1])
    first = torch.tensor([[START, 5]])
    output = ensemble(input_ids=source, decoder_input_ids=first, use_cache=True)
    cache: Any = output.past_key_values
    assert cache.get_seq_length() == 2
    cache.activate_past_recording()
    ensemble(source, decoder_input_ids=torch.tensor([[6]]), past_key_values=cache, use_cache=True)
    cache.crop(-1)
    assert cache.get_seq_length() == 2
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([1]))
    step = torch.tensor([[8]])
    found = ensemble(source, decoder_input_ids=step, past_key_values=cache, use_cache=True)
    expected = ensemble(source, decoder_input_ids=torch.cat([first, step], 1))
    assert torch.allclose(found.logits[:, -1], expected.logits[:, -1], atol=1e-5)


# ------------------------------------------------------------------ the translator


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three models that share a tokenizer, and one with another."""
    paths = []
    for number, alphabet in enumerate(("abcdefgh", "abcdefgh", "abcdefgh", "abcdefgi")):
        path = tmp_path_factory.mktemp(f"model{number}")
        qrnn(number, num_attention_heads=1 + number % 2).save_pretrained(path)
        _tokenizer(alphabet).save_pretrained(path)
        paths.append(str(path))
    return paths


def test_tokenizers_of_other_sides_are_named() -> None:
    # The vocabulary is the same, and what a source becomes too; only targets are read otherwise.
    one, other = (
        train_symbol_tokenizer(["ab"], ["ab"], source_tokens="char", target_tokens=side)
        for side in ("char", "blank")
    )
    check_same_tokenizers([one, one], ["A", "B"])
    with pytest.raises(ValueError, match="'A' and 'B' differ: "):
        check_same_tokenizers([one, other], ["A", "B"])
    twin = train_symbol_tokenizer(["ab"], ["ab"], source_tokens="char", target_tokens="char")
    twin.init_kwargs["target_tokens"] = "blank"
    with pytest.raises(ValueError, match=r"sides are \('char', 'char'\) and \('char', 'blank'\)"):
        check_same_tokenizers([one, twin], ["A", "B"])
    decomposing = train_symbol_tokenizer(["ab"], ["ab"], source_nfd=True)
    with pytest.raises(ValueError, match="their `normalizer` is not the same"):
        check_same_tokenizers([other, decomposing], ["A", "B"])


def test_load_translator_makes_one_of_several(folders: list[str]) -> None:
    translator = load_translator(*folders[:3], device="cpu")
    assert isinstance(translator.model, Ensemble)
    texts = ["abc", "", "hgfed"]
    expected = Translator(
        Ensemble([qrnn(0), qrnn(1, num_attention_heads=2), qrnn(2)]), _tokenizer("abcdefgh")
    )
    assert translator.translate(texts, num_beams=3) == expected.translate(texts, num_beams=3)
    assert translator.translate(texts) != load_translator(folders[0]).translate(texts)
    assert not isinstance(load_translator(folders[0]).model, Ensemble)


def test_load_translator_names_two_folders_whose_tokenizers_differ(folders: list[str]) -> None:
    with pytest.raises(ValueError, match="must have the same tokenizer") as caught:
        load_translator(folders[0], folders[1], folders[3])
    for part in (folders[0], folders[3], f"'h' is a token of {folders[0]!r} alone, with the id 11"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"`name_or_path` must be a folder .* but '.*none'"):
        load_translator(folders[0], "none/none/none")


def test_attention_of_an_ensemble_is_the_mean_of_its_members(folders: list[str]) -> None:
    together = load_translator(*folders[:2], device="cpu")
    found = together.attention("abcd", num_beams=2)
    source = torch.tensor([together.tokenizer("abcd")["input_ids"]])
    ids = together.tokenizer.convert_tokens_to_ids(found.target_tokens)
    with torch.no_grad():
        rows = [
            model(
                source, decoder_input_ids=torch.tensor([[START, *ids[:-1]]]), output_attentions=True
            )
            .cross_attentions[0][0]
            .mean(0)
            for model in (qrnn(0), qrnn(1, num_attention_heads=2))
        ]
    assert len(set(ids)) > 2
    assert torch.allclose(found.weights, (rows[0] + rows[1]) / 2, atol=1e-5)
    [[best]] = together.translate(["abcd"], num_beams=2)
    assert "".join(token for token in found.target_tokens if len(token) == 1) == best.text


def test_members_without_weights_have_no_attention_map() -> None:
    tokenizer, transformer = _tokenizer("abcdefgh"), marian(1)
    fused = Translator(Ensemble([qrnn(0), transformer]), tokenizer)
    with pytest.raises(ValueError, match="`model` must return cross-attentions, but returns none"):
        fused.attention("abc")
    transformer.set_attn_implementation("eager")
    weights = fused.attention("abc").weights
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=1e-5)


def test_states_of_several_models_are_no_picture(folders: list[str]) -> None:
    with pytest.raises(ValueError, match=r"`model` must be one model .* but is an ensemble of 2."):
        load_translator(*folders[:2]).hidden_states_map("abc")


# ------------------------------------------------------------------ lengths and refusals


def _limits(models: Sequence[PreTrainedModel]) -> list[int]:
    found: list[int] = target_limits(
        Ensemble(models).generation_config, torch.tensor([1, 10, 50])
    ).tolist()
    return found


def test_no_members_limit_cuts_the_ensemble() -> None:
    models = [qrnn(0), qrnn(1), qrnn(2)]
    assert _limits(models) == [52, 70, 150]
    set_length_rule(models[0].generation_config, 3.0, 10)
    assert _limits(models) == [53, 80, 200]
    set_length_rule(models[1].generation_config, 1.5, 90)
    assert _limits(models) == [93, 120, 240]
    models[2].generation_config.max_new_tokens = 100
    assert _limits(models) == [103, 130, 250]
    for model, length in zip(models, (20, 511, 100), strict=True):
        model.generation_config.max_new_tokens = length
    assert _limits(models) == [511] * 3
    assert models[0].generation_config.max_length == 512  # the member's own is as it was


def test_models_that_make_no_ensemble_are_refused() -> None:
    with pytest.raises(ValueError, match="`models` must hold at least one model"):
        Ensemble([])
    language_model: Any = QRNNForCausalLM(QRNNConfig(vocab_size=9, hidden_size=4))
    with pytest.raises(ValueError, match="must hold encoder-decoders, but holds a QRNNForCausalLM"):
        Ensemble([qrnn(0), language_model])
    with pytest.raises(ValueError, match=r"by the same ids .*, but do so by \[1\] and \[2\]"):
        Ensemble([qrnn(0), qrnn(1, eos_token_id=2)])


def test_an_ensemble_saves_its_members_only(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be saved by its members"):
        Ensemble([qrnn(0)]).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_caches_of_other_kinds_are_refused() -> None:
    ensemble, source = Ensemble([qrnn(0)]), torch.tensor(SOURCES[:1])
    with pytest.raises(ValueError, match=r"`cache_implementation` must be .* but is 'static'"):
        ensemble.generate(source, cache_implementation="static")
    made = ensemble(source, decoder_input_ids=torch.tensor([[START]]), use_cache=True)
    with pytest.raises(ValueError, match="`past_key_values` must be left out with an ensemble"):
        ensemble.generate(source, past_key_values=made.past_key_values)


def _tokenizer(alphabet: str, **options: Any) -> PreTrainedTokenizerFast:
    return train_character_tokenizer([alphabet], **options)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (_tokenizer("ac"), "'b' is a token of 'A' alone, with the id 5"),
        (_tokenizer("abcd"), "'d' is a token of 'B' alone, with the id 7"),
        (_tokenizer("ab"), "'c' is a token of 'A' alone, with the id 6"),
        (_tokenizer("abc", nfc=True), "their `normalizer` is not the same"),
        (make_byte_tokenizer(), "the id of 'a' is 4 and 101"),
        (train_word_tokenizer(["c b b a a a"]), "their `pre_tokenizer` is not the same"),
        (train_word_tokenizer(["c c b b b a"]), "the id of 'a' is 4 and 6"),
    ],
)
def test_tokenizers_that_differ_are_named(other: PreTrainedTokenizerFast, difference: str) -> None:
    tokenizers = [_tokenizer("abc"), _tokenizer("cba"), other]
    check_same_tokenizers(tokenizers[:2], ["A", "C"])
    with pytest.raises(ValueError, match="must have the same tokenizer, but those of") as caught:
        check_same_tokenizers([tokenizers[0], other], ["A", "B"])
    assert "'A' and 'B'" in str(caught.value)
    assert difference in str(caught.value)
