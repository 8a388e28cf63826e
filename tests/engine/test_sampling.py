"""Sampling: the probabilities of transformers, and draws that a seed gives again."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import random_sources, saved
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_qrnn.data.translations import Hypothesis
from hf_qrnn.engine import Sampling, Translator
from hf_qrnn.engine.equations import softmax
from hf_qrnn.engine.generation import GenerationSettings
from hf_qrnn.engine.sampling import sample, warp

pytestmark = pytest.mark.usefixtures("engine_library")

OPTIONS: list[dict[str, Any]] = [
    {"top_k": 0},
    {"top_k": 0, "temperature": 0.3},
    {"top_k": 5},
    {"top_k": 500},
    {"top_k": 1, "temperature": 2.0},
    {"top_k": 0, "top_p": 0.7},
    {"top_k": 0, "top_p": 1e-6},
    {"top_k": 7, "top_p": 0.5, "temperature": 1.4},
    {},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_probabilities_are_those_of_transformers_processors(options: dict[str, Any]) -> None:
    sampling = Sampling(**options)
    processors = LogitsProcessorList()
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    torch.manual_seed(0)
    for scale in (0.1, 1.0, 8.0):
        logits = scale * torch.randn(50, 187)
        # Some are equal, some impossible.
        logits[:10] = (logits[:10] * 2).round() / 2 + 1e-3 * torch.arange(187) % 3
        logits[10:20, ::3] = -torch.inf
        ids = torch.zeros(50, 1, dtype=torch.int64)
        expected = processors(ids, logits).softmax(-1).numpy()
        found = softmax(warp(logits.numpy(), sampling))
        np.testing.assert_array_equal(found > 0, expected > 0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


class Table:
    """A decoder whose probabilities are a table of the last token; it counts rows."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = np.log(np.maximum(np.array(rows, np.float32), 1e-30))
        self.asked: list[int] = []

    def step(self, tokens: Any) -> Any:
        self.asked.append(len(tokens))
        return self.rows[tokens]

    def select(self, rows: Any, sources: Any = None) -> None:
        pass


SETTINGS = GenerationSettings(start=0, ends=(1,))
TABLE = [[0.0, 0.2, 0.5, 0.3], [1.0, 0, 0, 0], [0, 0.7, 0.1, 0.2], [0, 0.0, 0.6, 0.4]]


def draw(num: int, sampling: Sampling, numbers: list[int] | None = None) -> list[list[Hypothesis]]:
    numbers = [0] if numbers is None else numbers
    table = Table(TABLE)
    return sample(table, SETTINGS, [9] * len(numbers), num, sampling, numbers)


def test_frequencies_are_the_probabilities() -> None:
    (found,) = draw(20_000, Sampling(top_k=0))
    counts = Counter(tuple(one.ids) for one in found)
    # () is 0.2, (2) 0.5 x 0.7, (2, 2) 0.5 x 0.1 x 0.7, (3, 2) 0.3 x 0.6 x 0.7.
    for ids, probability in {(): 0.2, (2,): 0.35, (2, 2): 0.035, (3, 2): 0.126}.items():
        deviation = (20_000 * probability * (1 - probability)) ** 0.5
        assert abs(counts[ids] - 20_000 * probability) < 4 * deviation
        one = next(one for one in found if tuple(one.ids) == ids)
        assert one.log_probability == one.score == pytest.approx(np.log(probability), rel=1e-5)
        assert not one.is_cut


def test_numbers_are_those_of_numpys_generator() -> None:
    seeds = np.random.SeedSequence([5, 10 + 3, 1])
    numbers = np.random.Generator(np.random.Philox(seeds)).random(9)
    token, expected = 0, []
    for number in numbers:
        token = int(np.searchsorted(np.cumsum(TABLE[token]), number, side="right"))
        expected.append(token)
        if token == 1:
            break
    found = draw(2, Sampling(seed=5, first=10, top_k=0), [3])[0][1]
    assert found.ids == [x for x in expected if x != 1]
    assert found.is_cut == (1 not in expected)


def test_log_probability_is_the_models_own() -> None:
    (found,) = draw(500, Sampling(temperature=0.2, top_k=2))
    one = next(one for one in found if one.ids == [2])
    assert one.log_probability == pytest.approx(np.log(0.5 * 0.7), rel=1e-5)
    # The two likeliest: no text is empty, none has "2, 2".
    assert {tuple(one.ids[:2]) for one in found} <= {(2,), (2, 3), (3, 2), (3, 3)}


def test_source_is_dropped_when_all_of_its_samples_have_ended() -> None:
    table = Table(TABLE)
    found = sample(table, SETTINGS, [1, 9, 1], 4, Sampling(), [0, 1, 2])
    assert [len(row) for row in found] == [4, 4, 4]
    assert all(len(one.ids) <= 1 for row in (found[0], found[2]) for one in row)
    assert {one.is_cut for one in found[0] if one.ids} == {True}
    assert table.asked[:2] == [12, 4]
    assert set(table.asked[1:]) == {4}


def test_nan_is_refused() -> None:
    table = Table([[0.5, 0.5]] * 2)
    table.rows[0, 1] = np.nan
    with pytest.raises(ValueError, match="gives NaN"):
        sample(table, SETTINGS, [3], 2, Sampling(), [0])


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_result_depends_on_seed_and_number_alone(backend: str, tmp_path: Path) -> None:
    saved(tmp_path, 1)
    translator, sources = Translator(tmp_path, backend=backend), random_sources(1, num=9)
    options: dict[str, Any] = {"num_return_sequences": 3, "max_new_tokens": 12}

    def ids(
        sampling: Sampling, sources: list[list[int]] = sources, **more: Any
    ) -> list[list[list[int]]]:
        found = translator.generate(sources, sampling=sampling, **options, **more)
        return [[one.ids for one in row] for row in found]

    first = ids(Sampling(seed=3))
    assert first == ids(Sampling(seed=3), batch_size=2, num_threads=3)
    assert first != ids(Sampling(seed=4))
    assert first[4:] == ids(Sampling(seed=3, first=4), sources[4:])
    same = ids(Sampling(seed=3), [sources[0]] * 5)
    assert len({str(row) for row in same}) == 5
    assert len({str(one) for one in same[0]}) == 3
    # The shorter of the samples: the first of each.
    options["num_return_sequences"] = 1
    assert [row[:1] for row in first] == ids(Sampling(seed=3))


def test_scores_are_changed_before_they_are_drawn_from(tmp_path: Path) -> None:
    model = saved(tmp_path, 2)
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.save_pretrained(tmp_path)
    found = Translator(tmp_path).generate(
        random_sources(2), sampling=Sampling(temperature=3.0), num_return_sequences=4
    )
    assert all(len(set(one.ids)) == len(one.ids) for row in found for one in row)
    assert max(len(one.ids) for row in found for one in row) > 8


def test_texts_in_parts_are_drawn_as_in_one(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    translator, texts = Translator(tmp_path), ["a", "", "der hund", "b", "a"]
    sampling = Sampling(seed=1, temperature=2.0)
    options: dict[str, Any] = {"max_new_tokens": 9, "num_return_sequences": 2}
    whole = translator.translate(texts, sampling=sampling, **options)
    parts = translator.translate(texts[:2], sampling=sampling, **options)
    parts += translator.translate(
        texts[2:], sampling=Sampling(seed=1, temperature=2.0, first=2), **options
    )
    assert [[one.text for one in row] for row in parts] == [
        [one.text for one in row] for row in whole
    ]
    assert whole[0] != whole[4]
    assert [one.text for one in whole[1]] == ["", ""]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"seed": -1}, "`seed` must be an integer of at least 0, but is -1."),
        ({"seed": 1.5}, "`seed` must be an integer"),
        ({"seed": True}, "`seed` must be an integer"),
        ({"seed": "1"}, "`seed` must be an integer"),
        ({"temperature": "1"}, "`temperature` must be positive, but is '1'."),
        ({"temperature": None}, "`temperature` must be positive, but is None."),
        ({"top_p": "1"}, "`top_p` must be in"),
        ({"temperature": 0.0}, "`temperature` must be positive, but is 0.0."),
        ({"temperature": float("inf")}, "`temperature` must be positive"),
        ({"top_k": -1}, "`top_k` must be an integer of at least 0"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\], but is 0.0."),
        ({"top_p": 1.5}, "`top_p` must be in"),
        ({"first": -1}, "`first` must be an integer"),
    ],
)
def test_wrong_numbers_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sampling(**fields)


def test_samples_are_no_beams(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    translator = Translator(tmp_path)
    with pytest.raises(ValueError, match=r"`num_beams` must be 1 with `sampling`, but is 2\."):
        translator.translate(["a"], num_beams=2, sampling=Sampling())
    with pytest.raises(ValueError, match=r"`num_return_sequences` must be at least 1, but is 0\."):
        translator.translate(["a"], num_return_sequences=0, sampling=Sampling())


@pytest.mark.parametrize("temperature", [1e-20, 1e-39, 1e-46, 5e-324])
@pytest.mark.parametrize("options", [{}, {"top_k": 0, "top_p": 0.5}], ids=str)
def test_a_temperature_near_zero_takes_the_likeliest(
    options: dict[str, Any], temperature: float, tmp_path: Path
) -> None:
    saved(tmp_path, 7)
    translator, sources = Translator(tmp_path), random_sources(2)
    greedy = translator.generate(sources, max_new_tokens=20)
    drawn = translator.generate(
        sources, max_new_tokens=20, sampling=Sampling(temperature=temperature, **options)
    )
    assert [some[0].ids for some in drawn] == [some[0].ids for some in greedy]


def test_the_largest_temperature_makes_all_alike() -> None:
    logits = np.array([[-50.0, 0.0, 50.0, 3.0]], np.float32)
    with np.errstate(over="ignore"):  # as the translator has it
        found = softmax(warp(logits, Sampling(temperature=1e300, top_k=0)))
    np.testing.assert_allclose(found, np.full((1, 4), 0.25))


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"seed": np.int64(3), "top_k": np.int32(5), "temperature": np.float32(0.5)}
    assert Sampling(**given, top_p=np.float64(0.5)) == Sampling(3, 0.5, 5, 0.5)
