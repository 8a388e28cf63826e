"""hf_qrnn.metrics.scoring: the numbers and signatures of the `sacrebleu` command."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_qrnn.metrics.scoring import (
    METRICS,
    SACREBLEU_METRICS,
    compare_translations,
    score_translations,
)
from hf_qrnn.metrics.table import BY_NAME, TABLE

HYPOTHESES = [
    "Two young, White males are outside near many bushes.",
    "Several men in hard hats operates a giant pulley system.  ",
    "",
    "A man in a blue shirt is standing on a ladder cleaning a window",
    "Zwei Männer \u2013 «Gruß» … 1,000.5 & <b>",
    "a b c d e . ",
]
REFERENCES = [
    "Two young, White males are outside near many bushes.",
    "Several men in hard hats are operating a giant pulley system.",
    "A little girl climbing into a wooden playhouse.",
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    "Drei Männer \u2013 «Gruß» … 1,000.5 & <i>\u2028x",
    "a b c d e .",
]


CHINESE = [
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002",
    "\u4ed6\u57282024\u5e74\u4e70\u4e86\u4e00\u53f0iPhone\u3002",
]
CHINESE_REFERENCES = [
    "\u4eca\u5929\u5929\u6c14\u771f\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u5427\u3002",
    "\u4ed6\u57282024\u5e74\u4e70\u4e86\u4e00\u90e8iPhone\u3002",
]


def command_scores(
    folder: Path, hypotheses: list[str], streams: list[list[str]], *arguments: str
) -> dict[str, dict[str, Any]]:
    """Run the `sacrebleu` command; return its scores by our names of the metrics, nine digits."""
    names = [f"ref{index}" for index in range(len(streams))]
    for name, lines in zip(["hyp", *names], [hypotheses, *streams], strict=True):
        (folder / name).write_bytes("".join(line + "\n" for line in lines).encode())
    command = [sys.executable, "-m", "sacrebleu", *names, "-i", "hyp", "-w", "9"]
    command += ["-m", *SACREBLEU_METRICS, *arguments]
    output = subprocess.run(
        command, cwd=folder, capture_output=True, check=True, encoding="utf-8"
    ).stdout
    return dict(zip(SACREBLEU_METRICS, json.loads(output), strict=True))


def assert_equal(scores: object, expected: dict[str, dict[str, Any]]) -> None:
    for metric, of_command in expected.items():
        found = getattr(scores, metric)
        assert round(found.score, 9) == of_command["score"]
        assert found.signature == of_command["signature"]


def test_scores_equal_the_command(tmp_path: Path) -> None:
    expected = command_scores(tmp_path, HYPOTHESES, [REFERENCES])
    assert_equal(score_translations(HYPOTHESES, REFERENCES), expected)


@pytest.mark.parametrize("tokenize", ["zh", "char", "intl", "none"])
def test_bleu_of_chosen_tokens_equals_the_command(tmp_path: Path, tokenize: str) -> None:
    expected = command_scores(tmp_path, CHINESE, [CHINESE_REFERENCES], "-tok", tokenize)
    scores = score_translations(CHINESE, CHINESE_REFERENCES, bleu_tokenize=tokenize)
    assert_equal(scores, expected)
    assert scores.bleu is not None
    assert f"|tok:{tokenize}|" in scores.bleu.signature
    assert (scores.bleu.score > 20) == (tokenize in ("zh", "char"))


def test_several_references_equal_the_command(tmp_path: Path) -> None:
    others = [text.replace("a", "o") for text in HYPOTHESES]
    several = [list(pair) for pair in zip(REFERENCES, others, strict=True)]
    expected = command_scores(tmp_path, HYPOTHESES, [REFERENCES, others])
    scores = score_translations(HYPOTHESES, several)
    assert_equal(scores, expected)
    assert scores.bleu is not None
    assert scores.bleu.signature.startswith("nrefs:2|")
    one = score_translations(HYPOTHESES, REFERENCES)
    assert one.bleu is not None
    assert scores.bleu.score > one.bleu.score
    either = [
        h.rstrip() in (r.rstrip(), o.rstrip())
        for h, (r, o) in zip(HYPOTHESES, several, strict=True)
    ]
    assert scores.exact_match == pytest.approx(100 * sum(either) / 6)


def test_numbers_of_references_may_vary() -> None:
    scores = score_translations(["a b c d", "e f g h"], [["a b c d"], ["x", "e f g h"]])
    assert scores.bleu is not None
    assert (round(scores.bleu.score, 9), scores.exact_match) == (100.0, 100.0)
    assert scores.bleu.signature.startswith("nrefs:var|")


def test_error_rates_come_beside_sacrebleus() -> None:
    scores = score_translations(["a b ", "c"], ["a", "c"])
    assert scores.char_error_rate == pytest.approx(2 / 2)
    assert scores.token_error_rate == pytest.approx(1 / 2)
    assert scores.word_error_rate == pytest.approx(1 / 2)
    assert str(scores).endswith(
        "CER   100.00  % of the references' characters\n"
        "TokER  50.00  % of the references' tokens between blanks\n"
        "WER    50.00  % of 2 lines\n"
        "exact  50.00  % of 2 lines"
    )


def test_exact_match_ignores_only_white_space_at_the_end() -> None:
    scores = score_translations(["a ", "A", " a", "a"], ["a", "a", "a", "a\t"], metrics=())
    assert scores.exact_match == 50.0
    assert scores.num_translations == 4


def test_perfect_translations() -> None:
    scores = score_translations(REFERENCES, REFERENCES)
    assert scores.bleu is not None
    assert scores.chrf is not None
    assert scores.ter is not None
    assert (round(scores.bleu.score, 9), scores.chrf.score, scores.ter.score) == (100, 100, 0)
    assert scores.exact_match == 100.0


def test_only_the_metrics_asked_for() -> None:
    scores = score_translations(HYPOTHESES, REFERENCES, metrics=("bleu", "chrf"))
    assert scores.ter is None
    assert scores.bleu == score_translations(HYPOTHESES, REFERENCES).bleu
    assert "TER" not in str(scores)


def test_to_dict_is_json() -> None:
    scores = score_translations(HYPOTHESES, REFERENCES)
    read = json.loads(json.dumps(scores.to_dict()))
    assert read == scores.to_dict()
    assert scores.bleu is not None
    assert read["bleu"] == {"score": scores.bleu.score, "signature": scores.bleu.signature}


def test_text_has_a_line_for_each_score() -> None:
    scores = score_translations(HYPOTHESES, REFERENCES)
    lines = str(scores).split("\n")
    names = ["BLEU", "chrF", "TER", "CER", "TokER", "WER", "exact"]
    assert [line.split()[0] for line in lines] == names
    assert scores.bleu is not None
    assert lines[0].split()[1:] == [f"{scores.bleu.score:.2f}", scores.bleu.signature]


def test_scoring_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    score_translations(["It ends so ."] * 200, ["It ends so ."] * 200, metrics=("bleu",))
    assert not caplog.records


@pytest.mark.parametrize(
    ("hypotheses", "references", "metrics", "sentence"),
    [
        (["a", "b"], ["a"], METRICS, "same number of lines, but have 2 and 1"),
        ([], [], METRICS, "at least one line, but is empty"),
        (["a"], ["a"], ("bleu", "meteor"), "'bleu', 'chrf', 'ter', .*but has 'meteor'"),
        (["a", "b"], [["a"], []], METRICS, "at least one text .* but has none for number 2"),
    ],
    ids=["counts", "empty", "metric", "no-reference"],
)
def test_mistakes_are_named(
    hypotheses: list[str], references: Any, metrics: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        score_translations(hypotheses, references, metrics=metrics)


def test_one_string_is_no_list() -> None:
    with pytest.raises(TypeError, match="`references` must be a list of texts"):
        score_translations(["a"], "a", metrics=())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("jp", r"`bleu_tokenize` must be one of none, zh, 13a, .*, but is 'jp'\.$"),
        ("ja-mecab", r"here, but is 'ja-mecab': it needs `pip install 'sacrebleu\[ja\]'`\.$"),
    ],
)
def test_tokenizers_that_cannot_be_are_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        score_translations(["a"], ["a"], bleu_tokenize=name)
    with pytest.raises(ValueError, match=sentence):
        compare_translations(["a"], ["a"], ["a"], bleu_tokenize=name)


def test_a_number_without_a_unit_is_shown_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = dataclasses.replace(BY_NAME["exact_match"], of="")
    monkeypatch.setattr("hf_qrnn.metrics.scoring.TABLE", (bare,))
    scores = score_translations(["a", "b"], ["a", "c"], metrics=("chrf",))
    assert str(scores) == "exact  50.00"


def test_columns_are_as_wide_as_the_longest_label(monkeypatch: pytest.MonkeyPatch) -> None:
    longer = [
        dataclasses.replace(metric, label="chrF++") if metric.name == "chrf" else metric
        for metric in TABLE
    ]
    monkeypatch.setattr("hf_qrnn.metrics.scoring.TABLE", longer)
    text = str(score_translations(HYPOTHESES, REFERENCES))
    # Six letters, a blank, and three places before the point.
    assert {line.index(".") for line in text.splitlines()} == {10}


def test_intervals_of_lines_with_nothing_in_common() -> None:
    # Some of the drawn test sets have no n-gram of their references, others have.
    found = score_translations(
        ["the cat sat", "xyz", "xyz", "xyz"], [["the cat sat"], ["bug"], ["bug"], ["bug"]],
        num_resamples=50,
    )  # fmt: skip
    assert found.chrf.confidence is not None
    assert 0 < found.chrf.confidence.mean < 100


def test_intervals_of_lines_with_empty_references() -> None:
    # A drawn test set may have nothing but those: its TER is a float, not NumPy's.
    found = score_translations(
        ["the dog", "home", "", ""],
        [["the cat"], ["home"], [""], [""]],
        num_resamples=500,
    )
    for score in (found.chrf, found.ter):
        assert score.confidence is not None
        assert 0 < score.confidence.mean < 100
