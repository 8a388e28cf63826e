"""Attention, states and token scores by the engine: those of the translator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_models import saved

from hf_qrnn import load_translator, make_byte_tokenizer
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.engine import Translator

pytestmark = pytest.mark.usefixtures("engine_library")

TEXT = "ein satz."


def assert_same_maps(folders: list[str], text: str = TEXT, **options: object) -> None:
    torchs = load_translator(*folders, device="cpu")
    expected = torchs.attention(text, **options)  # type: ignore[arg-type]
    for backend in ("native", "numpy"):
        engine = Translator(*folders, backend=backend)
        found = engine.attention(text, **options)  # type: ignore[arg-type]
        assert found.source_tokens == expected.source_tokens
        assert found.target_tokens == expected.target_tokens
        np.testing.assert_allclose(found.weights, expected.weights.numpy(), atol=1e-4)
        assert found.weights.dtype == np.float32
        # Nothing changes the scores of these models: the tokens' add up to the translation's.
        [[best]] = engine.translate([text], **options)  # type: ignore[arg-type]
        assert found.log_probabilities.shape == (len(found.target_tokens),)
        total = float(found.log_probabilities.sum())
        assert total == pytest.approx(best.log_probability, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("seed", range(6))
def test_maps_are_those_of_the_translator_over_random_models(
    seed: int, num_beams: int, tmp_path: Path
) -> None:
    saved(tmp_path, seed)
    assert_same_maps([str(tmp_path)], num_beams=num_beams)


def test_map_of_an_ensemble_is_the_mean_of_its_members(tmp_path: Path) -> None:
    # One attends in all layers, one in its last.
    kernels = {"encoder_kernel_sizes": 2, "decoder_kernel_sizes": 2}
    layers = {"encoder_layers": 2, "decoder_layers": 2}
    saved(tmp_path / "a", 1, attention_layers="all", **layers, **kernels)
    saved(tmp_path / "b", 2, attention_layers="last", decoder_start_token_id=0)
    assert_same_maps([str(tmp_path / name) for name in "ab"], num_beams=2)


def test_layers_and_heads_are_those_of_the_model(tmp_path: Path) -> None:
    changes = {"attention_layers": "all", "num_attention_heads": 3}
    kernels = {"encoder_kernel_sizes": 2, "decoder_kernel_sizes": 2}
    model = saved(tmp_path, 3, encoder_layers=2, decoder_layers=2, **changes, **kernels)
    translator = Translator(tmp_path)
    found = translator.attention(TEXT)
    source = translator.tokens.encode([TEXT])
    (best,) = translator.generate(source)[0]
    targets = [3, *best.ids][: len(found.target_tokens)]
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(source),
            decoder_input_ids=torch.tensor([targets]),
            output_attentions=True,
        )
    assert len(found.layers) == 2
    for layer, expected in zip(found.layers, output.cross_attentions, strict=True):
        assert layer.shape == (3, len(targets), len(source[0]))
        np.testing.assert_allclose(layer, expected[0].numpy(), atol=1e-4)
    assert not np.allclose(found.layers[0], found.layers[1], atol=1e-2)


def test_cut_translations_bytes_and_languages(tmp_path: Path) -> None:
    model = saved(tmp_path / "bytes", 5, vocab_size=260)
    make_byte_tokenizer().save_pretrained(tmp_path / "bytes")
    assert_same_maps([str(tmp_path / "bytes")], "aü中 ")
    model.generation_config.max_new_tokens = 3
    model.generation_config.save_pretrained(tmp_path / "bytes")
    assert_same_maps([str(tmp_path / "bytes")], "aü中 ")
    saved(tmp_path / "tags", 7)
    tags = train_symbol_tokenizer([TEXT], [], target_tokens="char", languages=["deu", "isl"])
    tags.save_pretrained(tmp_path / "tags")
    assert_same_maps([str(tmp_path / "tags")], language="isl")


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_states_are_the_encoding(backend: str, tmp_path: Path) -> None:
    saved(tmp_path, 4)
    tokens, states = Translator(tmp_path, backend=backend).hidden_states_map(TEXT)
    expected_tokens, expected = load_translator(str(tmp_path)).hidden_states_map(TEXT)
    assert tokens == expected_tokens
    np.testing.assert_allclose(states, expected.numpy(), atol=1e-5)


def test_maps_need_a_text_and_states_one_model(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    translator = Translator(tmp_path)
    for make_map in (translator.attention, translator.hidden_states_map):
        for text in ("", " \n"):
            with pytest.raises(ValueError, match="must have text, but is"):
                make_map(text)
        with pytest.raises(ValueError, match="`language` must be left out"):
            make_map("a", language="deu")
    with pytest.raises(ValueError, match=r"`model` must be one model .* but is an ensemble of 2\."):
        Translator(tmp_path, tmp_path).hidden_states_map("abc")
