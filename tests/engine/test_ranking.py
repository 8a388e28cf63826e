"""Rankings of hypotheses: Eq. 9 of the paper by hand, and where it equals others."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from engine_models import random_sources, saved

from hf_qrnn.engine import Translator
from hf_qrnn.engine.ranking import PaperRanking


def score_of(alpha: float, length: int, source_length: int, total: float) -> float:
    """Score one whole hypothesis of `length` characters."""
    ranking = PaperRanking(alpha, [source_length], [50])
    sums, ends = np.array([[total]], np.float32), np.array([[True]])
    return float(ranking.score(sums, length, ends, np.array([0]))[0, 0])


def test_factor_is_that_of_the_equation_by_hand() -> None:
    # T = 6, T_trg = 3 + 5 = 8: (6.5 / 6) (7.5 / 7) (8.5 / 8) = 414.375 / 336.
    assert score_of(0.5, 6, 3, -2.0) == pytest.approx(-2 * 414.375 / 336)
    # T = T_trg has one term, behind it there is none.
    assert score_of(0.5, 8, 3, -2.0) == pytest.approx(-2 * 8.5 / 8)
    assert score_of(0.5, 9, 3, -2.0) == pytest.approx(-2.0)
    assert score_of(0.5, 30, 3, -2.0) == pytest.approx(-2.0)


@pytest.mark.parametrize("length", [1, 4, 12, 15])
def test_alpha_of_one_normalises_by_the_length_up_to_the_wanted_one(length: int) -> None:
    assert score_of(1.0, length, 10, -3.0) == pytest.approx(-3 * 16 / length)


def test_alpha_of_zero_is_the_plain_sum() -> None:
    assert score_of(0.0, 4, 10, -3.0) == pytest.approx(-3.0)


def test_empty_target_counts_as_one_character() -> None:
    assert score_of(1.0, 0, 10, -3.0) == score_of(1.0, 1, 10, -3.0) == pytest.approx(-3 * 16)


def test_cut_target_has_no_end_token_to_leave_out() -> None:
    ranking = PaperRanking(1.0, [10], [50])
    sums = np.array([[-3.0]], np.float32)
    cut = ranking.score(sums, 3, np.array([[False]]), np.array([0]))
    assert float(cut[0, 0]) == pytest.approx(-3 * 16 / 4)


def test_alpha_of_zero_finds_what_no_length_penalty_finds(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    translator, sources = Translator(tmp_path), random_sources(5, num=8)
    options = {"num_beams": 4, "num_return_sequences": 4}
    paper = translator.generate(sources, **options, ranking="paper", alpha=0.0)
    translator.generation = dataclasses.replace(translator.generation, length_penalty=0.0)
    assert paper == translator.generate(sources, **options)


def test_scores_of_a_search_are_those_of_the_equation(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    translator, sources = Translator(tmp_path), random_sources(5, num=8)
    options = {"num_beams": 4, "num_return_sequences": 4}
    sums = translator.generate(sources, **options, ranking="paper", alpha=0.0)
    totals = [{tuple(one.ids): one.score for one in some} for some in sums]
    compared = 0
    for alpha in (0.3, 1.0):
        found = translator.generate(sources, **options, ranking="paper", alpha=alpha)
        for source, some, known in zip(sources, found, totals, strict=True):
            assert [one.score for one in some] == sorted((one.score for one in some), reverse=True)
            for one in some:
                terms = range(max(1, len(one.ids)), len(source) - 1 + 5 + 1)
                factor = math.prod((t + alpha) / t for t in terms)
                if tuple(one.ids) in known:
                    assert one.score == pytest.approx(factor * known[tuple(one.ids)], rel=1e-4)
                    compared += 1
    assert compared > 20


def test_longer_targets_are_favoured_by_a_larger_alpha(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    translator, sources = Translator(tmp_path), random_sources(5, num=12)
    lengths = [
        sum(len(some[0].ids) for some in translator.generate(sources, num_beams=4, **options))
        for options in ({"ranking": "paper", "alpha": 0.0}, {"ranking": "paper", "alpha": 3.0})
    ]
    assert lengths[0] < lengths[1]


def test_wrong_rankings_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    translator = Translator(tmp_path)
    with pytest.raises(ValueError, match="`ranking` must be one of 'length_penalty', 'paper'"):
        translator.translate(["a"], ranking="best")
    with pytest.raises(ValueError, match="`alpha` must be a number of at least 0, but is -1"):
        translator.translate(["a"], ranking="paper", alpha=-1)
