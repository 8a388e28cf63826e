"""`hf_qrnn.engine.Translator`: the translator's results in a process without torch."""

import copy
import json
import math
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import random_config, random_model, save, saved
from safetensors.torch import load_file, save_file
from sources import PACKAGE

from hf_qrnn import load_translator
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.engine import Translator
from hf_qrnn.engine.weights import Weights

TEXTS = ["der hund schläft.", "", "  ", "a", "zwei\nzeilen", "ein längerer satz, der mehr sagt."]
pytestmark = pytest.mark.usefixtures("engine_library")
SAVED_BY_0_1_0 = Path(__file__).parents[1] / "saved_by_0_1_0"


def assert_same(found: list[list[Any]], expected: list[list[Any]]) -> None:
    for some, others in zip(found, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            assert (one.text, one.is_cut) == (other.text, other.is_cut)
            assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-4)
            sums = (one.log_probability, other.log_probability)
            assert sums[0] == pytest.approx(sums[1], rel=1e-4, abs=1e-3)
            assert one.has_unknown == other.has_unknown


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "num_return_sequences": 2}])
def test_translations_are_those_of_the_translator(
    options: dict[str, int], backend: str, tmp_path: Path
) -> None:
    saved(tmp_path, 7)
    counted: list[int] = []
    found = Translator(tmp_path, backend=backend).translate(
        TEXTS, **options, max_new_tokens=20, batch_size=3, on_batch=counted.append
    )
    expected = load_translator(str(tmp_path)).translate(TEXTS, **options, max_new_tokens=20)
    assert_same(found, expected)
    assert [type(one) for one in found[0]] == [type(one) for one in expected[0]]
    assert sorted(counted) == [1, 2, 3]  # threads take turns


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_language_is_told_to_a_model_with_tags(options: dict[str, int], tmp_path: Path) -> None:
    saved(tmp_path, 7)
    tokenizer = train_symbol_tokenizer(TEXTS, [], target_tokens="char", languages=["deu", "isl"])
    tokenizer.save_pretrained(tmp_path)
    engine, torchs = Translator(tmp_path), load_translator(str(tmp_path))
    assert engine.languages == torchs.languages == ("deu", "isl")
    options = {**options, "max_new_tokens": 20}
    each = ["deu", "isl", "deu", "isl", "isl", "deu"]
    for language in ("deu", "isl", each):
        found = engine.translate(TEXTS, language=language, **options)
        assert_same(found, torchs.translate(TEXTS, language=language, **options))
    assert engine.translate(TEXTS, language="deu") != engine.translate(TEXTS, language="isl")
    for wrong in (None, "fre"):
        for translator in (engine, torchs):
            with pytest.raises(ValueError, match="`language` must be one of 'deu', 'isl', but is"):
                translator.check_language(wrong)


PROGRAM = """
import sys, types
sys.modules.update(torch=None, transformers=None)
# The package without its own `__init__`, which registers models with transformers.
package = types.ModuleType("hf_qrnn")
package.__path__ = [sys.argv[1]]
sys.modules["hf_qrnn"] = package
from hf_qrnn.engine import Translator
translator = Translator(sys.argv[2], backend=sys.argv[3])
assert translator.backend == sys.argv[3]
for found in translator.translate(sys.argv[4:], num_beams=3, max_new_tokens=20):
    print(repr(found[0].text), found[0].score)
"""


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_works_where_torch_cannot_be_imported(backend: str, tmp_path: Path) -> None:
    saved(tmp_path, 7)
    command = [sys.executable, "-c", PROGRAM, str(PACKAGE), str(tmp_path), backend, *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = Translator(tmp_path, backend=backend).translate(TEXTS, num_beams=3, max_new_tokens=20)
    assert done.stdout.splitlines() == [f"{one[0].text!r} {one[0].score}" for one in found]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision_are_widened(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(random_config(2)).to(dtype)
    save(model, tmp_path)
    weights = Weights(tmp_path)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        found = weights.take(name, *tensor.shape)
        assert found.dtype == np.float32
        assert torch.equal(torch.from_numpy(found.copy()), tensor.float())
    # Equal to the model with its weights widened: the engine computes in float32.
    expected = load_translator(str(tmp_path), dtype=torch.float32).translate(TEXTS)
    assert_same(Translator(tmp_path).translate(TEXTS), expected)


def test_weights_in_several_files_are_found(tmp_path: Path) -> None:
    model = saved(tmp_path / "whole", 4)
    save(model, tmp_path / "parts")
    for file in (tmp_path / "parts").glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    translators = [Translator(tmp_path / name) for name in ("whole", "parts")]
    assert translators[0].translate(TEXTS) == translators[1].translate(TEXTS)


@pytest.mark.parametrize("name", ["paper", "modern", "f_tied", "ifo_dense"])
def test_folders_of_0_1_0_load(name: str, tmp_path: Path) -> None:
    from hf_qrnn.engine.decoder import NumpyDecoder
    from hf_qrnn.engine.network import read_network
    from hf_qrnn.engine.settings import read_settings

    folder = SAVED_BY_0_1_0 / name
    network = read_network(read_settings(folder)[0], Weights(folder))
    # The inputs that the expected logits belong to: tests/model/test_saved_by_0_1_0.py.
    decoder = NumpyDecoder(network, [[5, 6, 7, 8, 9, 1], [9, 4, 3, 1]], 1)
    found = np.stack([decoder.step(np.array(ids)) for ids in ((3, 3), (5, 8), (6, 2))], axis=1)
    expected = load_file(folder / "expected_logits.safetensors")["logits"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["native", "numpy", "torch"])
def test_texts_come_from_anything_that_gives_them(kind: str, tmp_path: Path) -> None:
    saved(tmp_path, 7)
    translator: Any = load_translator(str(tmp_path))
    if kind != "torch":
        translator = Translator(tmp_path, backend=kind)
    expected = translator.translate(TEXTS)
    for texts in (iter(TEXTS), (x for x in TEXTS), dict.fromkeys(TEXTS), np.array(TEXTS, object)):
        assert translator.translate(texts, num_beams=np.int64(1)) == expected
    assert translator.translate(np.array(TEXTS)) == expected
    for wrong in (None, 3, "a", b"a"):
        with pytest.raises(TypeError, match="`texts` must be a list of texts, but is"):
            translator.translate(wrong)
    with pytest.raises(TypeError, match="`texts` must hold strings, but holds 3"):
        translator.translate(x for x in ["a", 3])
    with pytest.raises(ValueError, match="`num_beams` must be an integer of at least 1, but is '2"):
        translator.translate(TEXTS, num_beams="2")
    with pytest.raises(TypeError, match="`texts` must hold strings"):
        Translator(tmp_path).attention(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_a_translator_is_copied_and_sent_to_processes(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "a", 7)
    saved(tmp_path / "b", 8)
    monkeypatch.chdir(tmp_path)
    for names in (("a",), ("a", Path("b"))):
        translator = Translator(*names, backend=backend)
        translator.generation = replace(translator.generation, max_new_tokens=7)
        expected = translator.translate(TEXTS)
        copies = [copy.copy(translator), copy.deepcopy(translator)]
        data = pickle.dumps(translator)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            copies.append(pickle.loads(data))
        del translator
        for own in copies:
            assert own.translate(TEXTS) == expected
            assert own.backend == backend
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.apply(copies[0].translate, (TEXTS,)) == expected


def test_the_folder_may_be_elsewhere_when_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "own", 7)
    (tmp_path / "link").symlink_to("own")
    monkeypatch.chdir(tmp_path)
    translator = Translator("link", backend="native")
    expected = translator.attention("der hund").weights
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(translator.attention("der hund").weights, expected)
    # Whatever is in the place of the model now, its attention is another's.
    saved(tmp_path / "own", 8)
    with pytest.raises(ValueError, match="must be the one that was loaded, but its files have"):
        translator.attention("der hund")


def test_a_file_that_is_written_over_is_not_read_any_more(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    translator = Translator(tmp_path, backend="numpy")
    expected = translator.translate(TEXTS)
    # In place, as `cp` writes: what is mapped behind the new end ends a process that reads it.
    os.truncate(tmp_path / "model.safetensors", 100)
    assert translator.translate(TEXTS) == expected


# ------------------------------------------------------------------ what is refused


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "t5"}, "`model_type` must be 'qrnn' for the engine, but is 't5'."),
        ({"is_encoder_decoder": False}, "`is_encoder_decoder` must be true"),
        ({"of_later": 2}, "`of_later` must be absent for the engine, which does not know it"),
        ({"quantization_config": {}}, "`quantization_config` must be absent"),
        ({"pooling": "of"}, "`pooling` must be one of 'f', 'fo', 'ifo', but is 'of'."),
        ({"pooling": ["f"]}, "`pooling` must be one of"),
        ({"hidden_size": 0}, "`hidden_size` must be an integer of at least 1, but is 0."),
        ({"hidden_size": 1.5}, "`hidden_size` must be an integer"),
        ({"hidden_size": 13}, "must be"),
        ({"decoder_layers": 99}, "`encoder_layers` must be at least `decoder_layers`"),
        ({"encoder_layers": 10**9}, "must be"),
        ({"num_attention_heads": 5}, "`num_attention_heads` must be a divisor of `hidden_size`"),
        ({"residual": 1}, "`residual` must be a boolean, but is 1."),
        ({"attention_layers": "first"}, "`attention_layers` must be one of 'last', 'all'"),
        ({"decoder_kernel_sizes": [2] * 9}, "`decoder_kernel_sizes` must be an integer"),
        ({"encoder_kernel_sizes": 0}, "`encoder_kernel_sizes` must be an integer"),
        ({"vocab_size": 500}, "The weight `model.shared.weight` must be of shape"),
        ({"feed_forward_size": 77}, "feed_forward"),
    ],
)
def test_config_that_lies_is_refused(fields: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    saved(tmp_path, 0)
    change(tmp_path / "config.json", **fields)
    with pytest.raises(ValueError, match=sentence):
        Translator(tmp_path)


def test_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    change(tmp_path / "config.json", residual=True, dense_connections=True)
    with pytest.raises(ValueError, match="`dense_connections` must be False when `residual`"):
        Translator(tmp_path)
    fields = {"dense_connections": False, "hidden_size": 13, "num_attention_heads": 1}
    change(tmp_path / "config.json", **fields, encoder_bidirectional=True)
    with pytest.raises(ValueError, match="`hidden_size` must be even"):
        Translator(tmp_path)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"bad_words_ids": [[5]]}, "`bad_words_ids` must be absent for the engine"),
        ({"min_length": 5}, "`min_length` must be absent"),
        ({"renormalize_logits": True}, "`renormalize_logits` must be absent"),
        ({"eos_token_id": 10**6}, r"`eos_token_id` must be in \[0, `vocab_size`\)"),
        ({"eos_token_id": [1, "2"]}, "`eos_token_id` must be in"),
        (
            {"decoder_start_token_id": None, "bos_token_id": None},
            "`decoder_start_token_id` must be in",
        ),
        ({"length_penalty": "1"}, "`length_penalty` must be a number"),
        ({"early_stopping": "soon"}, "`early_stopping` must be a boolean or 'never'"),
        ({"length_penalty": 1e300}, "`length_penalty` must be a number"),
        ({"length_penalty": -5}, "`length_penalty` must be a number from -4 to 4, but is -5"),
        ({"length_penalty": 10**400}, "`length_penalty` must be a number"),
        ({"repetition_penalty": -1.0}, "`repetition_penalty` must be positive"),
        ({"repetition_penalty": 1e300}, "`repetition_penalty` must be positive"),
        ({"repetition_penalty": 1e-40}, "`repetition_penalty` must be positive"),
        ({"no_repeat_ngram_size": -1}, "`no_repeat_ngram_size` must be an integer"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be an integer of at least 1"),
        (
            {"max_length_ratio": "2", "_from_model_config": False},
            "`max_length_ratio` must be a number",
        ),
        (
            {"max_length_ratio": 1e300, "max_length_offset": 5, "_from_model_config": False},
            "`max_length_ratio` must be a number in",
        ),
        (
            {"max_length_ratio": 2, "max_length_offset": 10**400, "_from_model_config": False},
            "`max_length_offset` must be a number in",
        ),
    ],
)
def test_generation_config_it_cannot_follow_is_refused(
    fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    saved(tmp_path, 0)
    change(tmp_path / "generation_config.json", **fields)
    with pytest.raises(ValueError, match=sentence):
        Translator(tmp_path)


def test_fields_that_do_nothing_are_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    before = Translator(tmp_path).translate(TEXTS)
    idle = {"temperature": 0.3, "do_sample": True, "num_beams": 4, "min_length": 0}
    change(tmp_path / "generation_config.json", **idle, guidance_scale=None)
    change(tmp_path / "config.json", dropout=0.5, zoneout=0.1, torch_dtype="float32")
    assert Translator(tmp_path).translate(TEXTS) == before


def test_folder_without_a_generation_config_is_searched_by_its_config(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    before = Translator(tmp_path).translate(TEXTS)
    (tmp_path / "generation_config.json").unlink()
    assert Translator(tmp_path).translate(TEXTS) == before


COUNTS = ("num_beams", "num_return_sequences", "batch_size", "max_new_tokens", "num_threads")


def test_arguments_are_checked(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    translator = Translator(tmp_path)
    for name in ("num_beams", "batch_size", "max_new_tokens"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, but is 0."):
            translator.translate(["a"], **{name: 0})
    with pytest.raises(ValueError, match=r"`num_return_sequences` must be in \[1, `num_beams`\]"):
        translator.translate(["a"], num_return_sequences=2)
    wrong: Any
    for wrong in ([], [5, 99], [-1, 1], [5.5, 1], ["5"], 5, "abc", None, [[5], [6, 1]], [math.nan]):
        with pytest.raises(ValueError, match="`sources` must be lists of at least one id in"):
            translator.generate([[5, 1], wrong])
    for name, wrong in (
        *((name, wrong) for name in COUNTS for wrong in (2.0, "2", True, math.nan, [2])),
        ("num_beams", None),
        ("num_return_sequences", None),
        ("sampling", {}),
    ):
        with pytest.raises(
            ValueError, match=f"`{name}` must be an? .*, but is " + re.escape(repr(wrong))
        ):
            translator.translate(["a"], **{name: wrong})
    with pytest.raises(ValueError, match="`max_new_tokens` must be an integer of at least 1"):
        translator.stream("a", max_new_tokens="2")  # type: ignore[arg-type]
    for wrong in (tmp_path / "nowhere", None, 3, b"a", [tmp_path], ""):
        with pytest.raises(ValueError, match="`path` must be a folder with a saved"):
            Translator(wrong)


# ------------------------------------------------------------------ damaged weights


def test_every_truncated_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 1, 7, 8, 9, header - 1, header, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"`model\.safetensors` must be a whole file"):
            Translator(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"there is no `model\.safetensors`"):
        Translator(tmp_path)


def test_changed_headers_are_refused_or_read_and_never_crash(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = np.random.default_rng(0)
    said = []
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(draw.integers(1, 4)):
            changed[draw.integers(0, header)] = draw.integers(0, 256)
        path.write_bytes(changed)
        try:
            Translator(tmp_path)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 200
    assert all(text.startswith(("`model.safetensors` must", "The ")) for text in said)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "change_of",
    [
        {"data_offsets": [0, 16]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 4]},
        {"shape": [3]},
        {"shape": [2**40, 2**40]},
        {"shape": [True, 2]},
        {"shape": None},
        {"shape": [1] * 70 + [2]},
        {"shape": [0, 2**47, 2**47], "data_offsets": [0, 0]},
        {"shape": [0, 2**47, 2**47], "data_offsets": [0, 0], "dtype": "F8"},
        {"dtype": 4},
        {"dtype": "BF16"},
    ],
    ids=str,
)
def test_header_that_lies_is_refused(change_of: dict[str, Any], tmp_path: Path) -> None:
    header = json.dumps({"a": {**ENTRY, **change_of}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"`model\.safetensors` must be a whole file"):
        Weights(tmp_path)


def test_weights_of_integers_are_refused_where_they_are_wanted(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    with pytest.raises(ValueError, match=r"`a` must be of one of F32, .* but is of I8"):
        weights.take("a", 2)
    with pytest.raises(ValueError, match="must have the weight `b`"):
        weights.take("b", 2)


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd"])
def test_index_names_no_file_elsewhere(place: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(ValueError, match="must name files beside it"):
        Weights(tmp_path)
