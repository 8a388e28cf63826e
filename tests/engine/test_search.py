"""The engine's searches: the hypotheses of generate(), whatever the model, beams and batch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import random_sources, saved

from hf_qrnn.data.translations import Hypothesis
from hf_qrnn.engine import Sampling, Translator, native
from hf_qrnn.engine.generation import GenerationSettings
from hf_qrnn.engine.search import search
from hf_qrnn.translation.search import generate_hypotheses

pytestmark = pytest.mark.usefixtures("engine_library")


def assert_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    for some, others in zip(found, expected, strict=True):
        assert [one.ids for one in some] == [other.ids for other in others]
        assert [one.is_cut for one in some] == [other.is_cut for other in others]
        for one, other in zip(some, others, strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-4)
            sums = (one.log_probability, other.log_probability)
            assert sums[0] == pytest.approx(sums[1], rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("num_beams", [1, 4, 8])
@pytest.mark.parametrize("seed", range(8))
def test_hypotheses_are_those_of_generate_over_random_models(
    seed: int, num_beams: int, tmp_path: Path
) -> None:
    model, sources = saved(tmp_path, seed), random_sources(seed, num=7)
    options = {"num_beams": num_beams, "num_return_sequences": max(1, num_beams // 2)}
    expected = generate_hypotheses(model, sources, batch_size=4, **options)
    for backend in ("numpy", "native"):
        found = Translator(tmp_path, backend=backend).generate(sources, batch_size=4, **options)
        assert_same(found, expected)
    # Neither only cut nor only whole ones, or half of the search would not be looked at.
    assert len({len(one.ids) for some in found for one in some}) > 1


SETTINGS: dict[str, dict[str, Any]] = {
    "short sentences": {"length_penalty": 0.0},
    "long sentences": {"length_penalty": 2.0},
    "negative": {"length_penalty": -1.0},
    "early": {"early_stopping": True},
    "never": {"early_stopping": "never"},
    "repetition": {"repetition_penalty": 1.7},
    "n-grams": {"no_repeat_ngram_size": 2},
    "one-grams": {"no_repeat_ngram_size": 1, "repetition_penalty": 0.8},
    "two ends": {"eos_token_id": [1, 9, 20]},
    "no end": {"eos_token_id": None},
    "own start": {"decoder_start_token_id": 7},
    "length": {"max_length": 9},
    "new tokens": {"max_new_tokens": 7},
}


OF_BEAMS = {"length_penalty", "early_stopping"}
CASES = [
    pytest.param(changes, num_beams, id=f"{name}, {num_beams} beams")
    for name, changes in SETTINGS.items()
    for num_beams in (1, 4)
    if num_beams > 1 or not changes.keys() & OF_BEAMS
]


@pytest.mark.parametrize(("changes", "num_beams"), CASES)
def test_generation_config_is_followed(
    changes: dict[str, Any], num_beams: int, tmp_path: Path
) -> None:
    model, sources = saved(tmp_path, 5), random_sources(5)
    for name, value in {"num_beams": num_beams, **changes}.items():
        setattr(model.generation_config, name, value)
    model.generation_config.save_pretrained(tmp_path)
    # One length for all: transformers hopes for the longest of a batch in every row.
    options = {"num_beams": num_beams, "num_return_sequences": num_beams}
    if not changes.keys() & {"max_length", "max_new_tokens"}:
        options["max_new_tokens"] = 16
    expected = generate_hypotheses(model, sources, **options)
    for backend in ("numpy", "native"):
        assert_same(Translator(tmp_path, backend=backend).generate(sources, **options), expected)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_result_does_not_depend_on_the_batch(num_beams: int, backend: str, tmp_path: Path) -> None:
    saved(tmp_path, 1)
    translator, sources = Translator(tmp_path, backend=backend), random_sources(1, num=9)
    together = translator.generate(sources, num_beams=num_beams)
    alone = translator.generate(sources, num_beams=num_beams, batch_size=1)
    assert_same(together, alone)


class Table:
    """A decoder whose logits are a table of the last token: hand-worked searches."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = np.log(np.array(rows, np.float32))

    def step(self, tokens: Any) -> Any:
        return self.rows[tokens]

    def select(self, rows: Any, sources: Any = None) -> None:
        pass


def test_beam_search_finds_what_greedy_search_misses() -> None:
    # Tokens 0 start, 1 end, 2, 3. Greedy: 2 (0.6), end (0.4): 0.24. Best: 3 (0.4), end (0.9): 0.36.
    tiny = 1e-6
    table = Table(
        [
            [tiny, tiny, 0.6, 0.4],
            [tiny, 1.0, tiny, tiny],
            [tiny, 0.4, 0.3, 0.3],
            [tiny, 0.9, 0.05, 0.05],
        ]
    )
    settings = GenerationSettings(start=0, ends=(1,), length_penalty=0.0)
    greedy = search(table, settings, [5], 1, 1)[0][0]
    assert greedy.ids == [2]
    assert greedy.score == pytest.approx(np.log(0.24), rel=1e-4)
    beam = search(table, settings, [5], 2, 2)[0]
    assert [one.ids for one in beam] == [[3], [2]]
    assert beam[0].score == pytest.approx(np.log(0.36), rel=1e-4)
    # The mean over the tokens, the end one of them.
    mean = search(table, dataclasses.replace(settings, length_penalty=1.0), [5], 2, 1)[0][0]
    assert mean.score == pytest.approx(np.log(0.36) / 2, rel=1e-4)


def test_row_ends_at_its_own_limit() -> None:
    table = Table([[0.1, 0.1, 0.8]] * 3)
    settings = GenerationSettings(start=0, ends=(1,))
    short, long = search(table, settings, [2, 5], 1, 1)
    total = pytest.approx(2 * np.log(0.8), rel=1e-4)
    assert short == [Hypothesis([2, 2], total, is_cut=True, log_probability=total)]
    assert long[0].ids == [2] * 5


def test_nan_is_refused() -> None:
    table = Table([[0.5, float("nan")]] * 2)
    settings = GenerationSettings(start=0, ends=(1,))
    for num_beams in (1, 2):
        with pytest.raises(ValueError, match="gives NaN"):
            search(table, settings, [3], num_beams, 1)


def test_saved_length_rule_is_followed(tmp_path: Path) -> None:
    model = saved(tmp_path, 2)
    sources = random_sources(2)
    path = tmp_path / "generation_config.json"
    fields = json.loads(path.read_text())
    from hf_qrnn.model.limits_qrnn import set_length_rule

    set_length_rule(model.generation_config, 0.5, 3)
    model.generation_config.save_pretrained(tmp_path)
    assert_same(Translator(tmp_path).generate(sources), generate_hypotheses(model, sources))
    # transformers loses the rule where the file says that config.json is its origin.
    path.write_text(json.dumps({**fields, "max_length_ratio": 0.5, "max_length_offset": 3}))
    loaded = type(model).from_pretrained(tmp_path)
    assert_same(Translator(tmp_path).generate(sources), generate_hypotheses(loaded, sources))


@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2},
        {"num_beams": 2, "ranking": "paper"},
        {"sampling": Sampling(temperature=0.5)},
    ],
    ids=str,
)
def test_a_limit_costs_nothing_before_it_is_reached(
    options: dict[str, Any], backend: str, tmp_path: Path
) -> None:
    model = saved(tmp_path, 7)
    model.lm_head.bias.data[1] += 2.0  # targets end
    model.save_pretrained(tmp_path)
    translator, sources = Translator(tmp_path, backend=backend), random_sources(1)
    expected = translator.generate(sources, max_new_tokens=2000, **options)
    assert max(len(one.ids) for some in expected for one in some) < 2000
    for limit in (10**12, 2**70):
        assert translator.generate(sources, max_new_tokens=limit, **options) == expected


def test_greedy_search_in_pieces_is_that_in_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved(tmp_path, 7)
    translator, sources = Translator(tmp_path, backend="native"), random_sources(1)
    expected = translator.generate(sources, max_new_tokens=50)
    assert len({len(some[0].ids) for some in expected}) > 2
    for most in (1, 3, 50):
        monkeypatch.setattr(native, "_MOST_STEPS", most)
        assert translator.generate(sources, max_new_tokens=50) == expected
