"""Ensembles in the engine: the results, and the refusals, of those of the translator."""

import json
from pathlib import Path
from typing import Any

import pytest
from engine_models import LETTERS, random_sources, saved

from hf_qrnn import load_translator, train_character_tokenizer
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.engine import Translator
from hf_qrnn.translation.search import generate_hypotheses

pytestmark = pytest.mark.usefixtures("engine_library")

TEXTS = ["der hund schläft.", "", "a", "ein längerer satz, der mehr sagt.", "zwei"]


def make(folder: Path, seed: int, generation: dict[str, Any], **changes: Any) -> str:
    """Save a drawn model, with fields of its generation config."""
    model = saved(folder, seed, **changes)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.generation_config._from_model_config = False
    model.generation_config.save_pretrained(folder)
    return str(folder)


MEMBERS: dict[str, list[dict[str, Any]]] = {
    "two": [{}, {}],
    "three": [{}, {}, {}],
    "two starts": [{}, {"decoder_start_token_id": 0}],
    "one limit": [{"max_new_tokens": 4}, {}],
    "two limits": [{"max_new_tokens": 4}, {"max_length": 9}],
    "two rules": [
        {"max_length_ratio": 0.5, "max_length_offset": 5},
        {"max_length_ratio": 1.5, "max_length_offset": 2},
    ],
    "first member's search": [
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
        {"repetition_penalty": 2.0},
    ],
    "first member's ranking": [
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 4, "length_penalty": 2.0},
    ],
}
CASES = [
    (kind, num_beams)
    for kind in MEMBERS
    for num_beams in (1, 4)
    if num_beams > 1 or "ranking" not in kind
]


@pytest.mark.parametrize(("kind", "num_beams"), CASES)
def test_hypotheses_are_those_of_the_translators_ensemble(
    kind: str, num_beams: int, tmp_path: Path
) -> None:
    folders = [
        make(tmp_path / str(seed), seed + 10, generation)
        for seed, generation in enumerate(MEMBERS[kind])
    ]
    torchs, sources = load_translator(*folders, device="cpu"), random_sources(3, num=7)
    options = {"num_beams": num_beams, "num_return_sequences": max(1, num_beams // 2)}
    # One length for all, or transformers hopes for the longest of a batch in every row.
    alone = {"batch_size": 1}
    expected = generate_hypotheses(torchs.model, sources, **alone, **options)
    for backend in ("native", "numpy"):
        found = Translator(*folders, backend=backend).generate(sources, **options)
        for some, others in zip(found, expected, strict=True):
            assert [one.ids for one in some] == [other.ids for other in others]
            assert [one.is_cut for one in some] == [other.is_cut for other in others]
            wanted = [other.score for other in others]
            assert [one.score for one in some] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    first = Translator(folders[0]).generate(sources, **options)
    assert [[one.ids for one in some] for some in found] != [
        [one.ids for one in some] for some in first
    ]


def test_translations_have_a_language_and_one_member_is_itself(tmp_path: Path) -> None:
    tokenizer = train_symbol_tokenizer(TEXTS, [], target_tokens="char", languages=["deu", "isl"])
    folders = []
    for seed in (1, 2):
        folders.append(make(tmp_path / str(seed), seed, {}))
        tokenizer.save_pretrained(folders[-1])
    found = Translator(*folders).translate(TEXTS, language="isl", max_new_tokens=9)
    expected = load_translator(*folders).translate(TEXTS, language="isl", max_new_tokens=9)
    assert [row[0].text for row in found] == [row[0].text for row in expected]
    one = Translator(folders[0]).translate(TEXTS, language="isl")
    twice = Translator(folders[0], folders[0]).translate(TEXTS, language="isl")
    assert [row[0].text for row in twice] == [row[0].text for row in one]


def change(folder: str, name: str, **fields: Any) -> None:
    path = Path(folder) / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("kind", ["vocabulary", "ids", "special", "sides", "part", "ends"])
def test_models_that_are_no_ensemble_are_refused_as_by_the_translator(
    kind: str, tmp_path: Path
) -> None:
    folders = [make(tmp_path / name, 1, {}) for name in "ab"]
    if kind == "vocabulary":
        train_character_tokenizer([LETTERS[:-1]]).save_pretrained(folders[1])
    elif kind == "ids":
        train_character_tokenizer(["é" + LETTERS[:-1]]).save_pretrained(folders[1])
    elif kind == "special":
        change(folders[1], "tokenizer_config.json", pad_token="</s>")
    elif kind == "sides":
        for folder, side in zip(folders, ("char", "blank"), strict=True):
            made = train_symbol_tokenizer(["a"], ["a \u2581a"], target_tokens=side)
            made.save_pretrained(folder)
    elif kind == "part":
        train_character_tokenizer([LETTERS], nfc=True).save_pretrained(folders[1])
    else:
        change(folders[1], "generation_config.json", eos_token_id=[1, 5])
    with pytest.raises(ValueError, match="must") as expected:
        load_translator(*folders)
    with pytest.raises(ValueError, match="must") as found:
        Translator(*folders)
    assert str(found.value) == str(expected.value)
