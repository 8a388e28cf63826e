"""hf_qrnn.translation.translator: texts in, texts out, and the maps of what the model looked at."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from hf_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForConditionalGeneration, engine
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.data.tokenization import make_byte_tokenizer, train_character_tokenizer
from hf_qrnn.data.translations import one_line
from hf_qrnn.translation.translator import Translator, load_translator

ALPHABET = "abcdefgh ijkl.ü\n"
TEXTS = ["abc", "", "hül dki", " \t", "a", "lkj ihg fed cba abc def."]


def _config(vocab_size: int, **changes: Any) -> QRNNConfig:
    sizes = {"embedding_size": 12, "hidden_size": 12, "encoder_layers": 2, "decoder_layers": 2}
    return QRNNConfig(vocab_size=vocab_size, **{**sizes, **changes})


def _model(config: QRNNConfig) -> QRNNForConditionalGeneration:
    torch.manual_seed(2)  # some translations end by themselves, some at their limit
    model = QRNNForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight *= 4  # a sure model, whose tokens differ
    return model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_character_tokenizer([ALPHABET])


@pytest.fixture(scope="module")
def translator(tokenizer: PreTrainedTokenizerFast) -> Translator:
    return Translator(_model(_config(len(tokenizer))), tokenizer)


@pytest.fixture(scope="module")
def folder(translator: Translator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    translator.model.save_pretrained(path)
    translator.tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("num_beams", [1, 3])
def test_translations_do_not_depend_on_the_batch(translator: Translator, num_beams: int) -> None:
    together = translator.translate(TEXTS, num_beams=num_beams, batch_size=8)
    for text, [expected] in zip(TEXTS, together, strict=True):
        [[alone]] = translator.translate([text], num_beams=num_beams, batch_size=1)
        assert alone.text == expected.text
        assert alone.score == pytest.approx(expected.score, abs=1e-5)
    assert len({found.text for [found] in together}) == 5
    assert len(together[4][0].text) < 20 < len(together[0][0].text)


def test_translations_come_best_first(translator: Translator) -> None:
    results = translator.translate(TEXTS, num_beams=4, num_return_sequences=3)
    assert [len(found) for found in results] == [3] * len(TEXTS)
    for found in results:
        scores = [translation.score for translation in found]
        assert scores == sorted(scores, reverse=True)


def test_text_without_characters_skips_the_model(
    translator: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translator.model, "generate", None)
    counts: list[int] = []
    results = translator.translate(
        ["", "  ", "\n"], num_beams=2, num_return_sequences=2, on_batch=counts.append
    )
    assert [[(found.text, found.score) for found in row] for row in results] == [
        [("", 0.0), ("", 0.0)]
    ] * 3
    assert counts == [3]


def test_on_batch_counts_every_text(translator: Translator) -> None:
    counts: list[int] = []
    translator.translate(TEXTS, batch_size=3, on_batch=counts.append)
    assert sum(counts) == len(TEXTS)
    assert len(counts) == 3  # the empty ones, three, one


def test_no_texts(translator: Translator) -> None:
    assert translator.translate([]) == []


def test_greedy_score_is_the_log_probability(translator: Translator) -> None:
    [[found]] = translator.translate(["abc"])
    attention = translator.attention("abc")
    ids = translator.tokenizer.convert_tokens_to_ids(attention.target_tokens)
    source = torch.tensor([translator.tokenizer("abc")["input_ids"]])
    with torch.no_grad():
        loss = translator.model(source, labels=torch.tensor([ids])).loss
    assert found.score == pytest.approx(-float(loss) * len(ids), rel=1e-4)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_attention_belongs_to_the_translation(translator: Translator, num_beams: int) -> None:
    for source in ("hül dki", "a"):
        [[found]] = translator.translate([source], num_beams=num_beams)
        attention = translator.attention(source, num_beams=num_beams)
        assert attention.source_tokens == [*source, "</s>"]
        shape = (len(attention.target_tokens), len(attention.source_tokens))
        assert attention.weights.shape == shape
        assert torch.allclose(attention.weights.sum(1), torch.ones(shape[0]), atol=1e-5)
        specials = ("</s>", "<s>", "<pad>", "<unk>")
        assert "".join(t for t in attention.target_tokens if t not in specials) == found.text


@pytest.mark.parametrize("attention_layers", ["last", "all"])
def test_attention_is_the_mean_of_what_generate_saw(
    attention_layers: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = _config(len(tokenizer), attention_layers=attention_layers, num_attention_heads=2)
    translator = Translator(_model(config), tokenizer)
    attention = translator.attention("hül dki")
    source = torch.tensor([tokenizer("hül dki")["input_ids"]])
    output = translator.model.generate(
        source,
        max_new_tokens=len(attention.target_tokens),
        do_sample=False,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    steps = [  # of each step: layers x (1, heads, 1, S)
        sum(layer.mean(1)[0, 0] for layer in layers) / len(layers)
        for layers in output.cross_attentions
    ]
    assert len(output.cross_attentions[0]) == (2 if attention_layers == "all" else 1)
    assert torch.allclose(attention.weights, torch.stack(steps), atol=1e-5)


def test_hidden_states_map_is_the_encoding(translator: Translator) -> None:
    tokens, states = translator.hidden_states_map("hül d")
    assert tokens == [*"hül d", "</s>"]
    rows = torch.tensor([translator.tokenizer("hül d")["input_ids"]])
    with torch.no_grad():
        output = translator.model(rows, decoder_input_ids=torch.tensor([[3]]))
    assert torch.equal(states, output.encoder_last_hidden_state[0])
    assert not states.requires_grad


@pytest.mark.parametrize("text", ["", " \n"])
def test_maps_need_a_text(translator: Translator, text: str) -> None:
    for make_map in (translator.attention, translator.hidden_states_map):
        with pytest.raises(ValueError, match="must have text, but is"):
            make_map(text)


def test_bytes_belong_to_the_character_they_complete() -> None:
    tokenizer = make_byte_tokenizer()
    translator = Translator(_model(_config(len(tokenizer))), tokenizer)
    tokens, _ = translator.hidden_states_map("aü中 ")
    assert tokens == ["a", "", "ü", "", "", "中", " ", "</s>"]
    with torch.no_grad():
        translator.model.lm_head.bias[4 + 0xC3] = 100.0  # the first byte of a letter, for ever
    [[found]] = translator.translate(["ab"])
    target_tokens = translator.attention("ab").target_tokens
    assert found.text == "\ufffd" * len(target_tokens)
    assert target_tokens == [""] * (len(target_tokens) - 1) + [found.text]


def test_a_saved_model_translates_alike(translator: Translator, folder: Path) -> None:
    loaded = load_translator(str(folder), device="cpu")
    assert loaded.translate(TEXTS) == translator.translate(TEXTS)
    assert not loaded.model.training


def test_load_translator_takes_a_precision(folder: Path) -> None:
    loaded = load_translator(str(folder), dtype=torch.float64)
    assert loaded.model.dtype == torch.float64
    assert load_translator(str(folder)).model.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_on_a_cpu_unless_asked_for(
    dtype: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    half = load_translator(str(folder), device="cpu", dtype=dtype)
    half.model.save_pretrained(tmp_path)
    half.tokenizer.save_pretrained(tmp_path)
    loaded = load_translator(str(tmp_path), device="cpu")
    # Every weight, as saved: none was rounded once more.
    for name, weight in loaded.model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, half.model.state_dict()[name].float())
    assert load_translator(str(tmp_path), device="cpu", dtype=dtype).model.dtype == dtype
    by_engine = engine.Translator(tmp_path, backend="numpy").translate(TEXTS)
    for ours, theirs in zip(by_engine, loaded.translate(TEXTS), strict=True):
        assert [x.text for x in ours] == [x.text for x in theirs]
        assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-4)


def test_missing_models_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rule = "`name_or_path` must be a folder with a saved translation model or the name of one"
    for name in (str(tmp_path / "none"), "nobody/no-such-model", str(tmp_path)):
        with pytest.raises(ValueError, match=rule) as caught:
            load_translator(name)
        assert repr(name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_is_refused(translator: Translator, tmp_path: Path) -> None:
    translator.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be a folder with a saved translation model"):
        load_translator(str(tmp_path))


def test_a_language_model_does_not_translate(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    QRNNForCausalLM(_config(len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks 8 of its weights, 'model"):
        load_translator(str(tmp_path))


def test_weights_that_are_integers_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    weights = {name: (100 * weight).long() for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="of floating-point numbers, but is of I64 in") as caught:
        load_translator(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_knows_no_unknown_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"unk_token": "<unk>"', '"unk_token": "<none>"'))
    with pytest.raises(ValueError, match="`name_or_path` must have a token for unknown characters"):
        load_translator(str(tmp_path))


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    config = {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    with pytest.raises(ValueError, match="must be a folder with a saved translation model"):
        load_translator(str(tmp_path))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("device", ["tpu9", "cuda:77", "cpu:x"])
def test_devices_that_are_not_there(device: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"`device` must be .* but is '{device}'"):
        load_translator(str(folder), device=device)


def test_one_line_has_no_line_end() -> None:
    text = "a\r\nb\nc\rd\u2028e\u2029f\x85g\vh\fi\x1cj k"
    assert one_line(text) == "a b c d e f g h i j k"
    assert all(len(one_line(f"a{chr(code)}b").splitlines()) == 1 for code in range(0x3000))


def test_language_chooses_the_tag_of_each_source() -> None:
    tokenizer = train_symbol_tokenizer(["abc d"], ["X1 Y Z Q"], languages=["eng", "fre"])
    translator = Translator(_model(_config(len(tokenizer))), tokenizer)
    assert translator.languages == ("eng", "fre")
    apart = [translator.translate(["abc"], language=name)[0][0] for name in ("eng", "fre")]
    assert apart[0] != apart[1]
    mixed = translator.translate(["abc", "", "abc"], language=["fre", "eng", "eng"])
    assert [found.text for [found] in mixed] == [apart[1].text, "", apart[0].text]
    attention = translator.attention("ab", language="fre")
    assert attention.source_tokens == ["<fre>", "a", "b", "</s>"]
    assert translator.hidden_states_map("ab", language="fre")[0] == attention.source_tokens


def test_language_is_refused_in_one_sentence(translator: Translator) -> None:
    assert translator.languages == ()
    tokenizer = train_symbol_tokenizer(["abc"], ["X"], languages=["eng", "fre"])
    tagged = Translator(_model(_config(len(tokenizer))), tokenizer)
    for call in (tagged.attention, tagged.hidden_states_map, lambda x: tagged.translate([x])):
        with pytest.raises(ValueError, match="`language` must be one of 'eng', 'fre', but is not"):
            call("abc")
    tagged.check_language("fre")
    with pytest.raises(ValueError, match=r"`language` must be left out .* but is 'fre'"):
        translator.check_language("fre")
