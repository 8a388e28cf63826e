"""hf_qrnn.training.scoring: the numbers and signatures of the `sacrebleu` command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_qrnn.training.scoring import METRICS, score_translations

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


def test_scores_equal_the_command(tmp_path: Path) -> None:
    for name, lines in (("hyp", HYPOTHESES), ("ref", REFERENCES)):
        (tmp_path / name).write_bytes("".join(line + "\n" for line in lines).encode())
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-m", *METRICS, "-w", "9"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True)
    scores = score_translations(HYPOTHESES, REFERENCES)
    for metric, expected in zip(METRICS, json.loads(output.stdout), strict=True):
        found = getattr(scores, metric)
        assert round(found.score, 9) == expected["score"]
        assert found.signature == expected["signature"]


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
    assert [line.split()[0] for line in lines] == ["BLEU", "chrF", "TER", "exact"]
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
        (["a"], ["a"], ("bleu", "meteor"), "'bleu', 'chrf', 'ter', but has 'meteor'"),
    ],
    ids=["counts", "empty", "metric"],
)
def test_mistakes_are_named(
    hypotheses: list[str], references: list[str], metrics: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        score_translations(hypotheses, references, metrics=metrics)


def test_one_string_is_no_list() -> None:
    with pytest.raises(TypeError, match="`references` must be a list of texts"):
        score_translations(["a"], "a", metrics=())
