"""hf_qrnn.metrics: loaded offline by `evaluate`, and sacrebleu's command to the last digit."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import pytest

from hf_qrnn.cli.main import main
from hf_qrnn.metrics import METRIC_NAMES, metric_path
from hf_qrnn.metrics.scoring import SACREBLEU_METRICS as METRICS
from hf_qrnn.metrics.scoring import compare_translations, score_translations

REFERENCES = [
    "Two young, White males are outside near many bushes.",
    "Several men in hard hats are operating a giant pulley system.",
    "A little girl climbing into a wooden playhouse.",
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    "Drei M\u00e4nner \u2013 \u00abGru\u00df\u00bb \u2026 1,000.5 & <i>\u2028x",
]
SYSTEM = [
    "Two young men are outside near many bushes. ",
    "Several men in hard hats operate a giant pulley system .",
    "",
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    "Zwei M\u00e4nner \u2013 \u00abGru\u00df\u00bb \u2026 1,000.5 & <b>",
]
BASELINE = [
    "Two men are outside.",
    "Men in hats are operating a system.",
    "A girl in a playhouse.",
    "A man in a shirt is cleaning a window.",
    "Drei M\u00e4nner \u2013 \u00abGru\u00df\u00bb",
]
OTHERS = [
    "Two young men are outside, near bushes.",
    "",
    "A girl climbs into a playhouse.",
    "A man cleans a window.",
    "Zwei M\u00e4nner",
]
RESAMPLES = 60


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    texts = {"ref": REFERENCES, "other": OTHERS, "system": SYSTEM, "baseline": BASELINE}
    for name, lines in texts.items():
        (folder / name).write_bytes("".join(line + "\n" for line in lines).encode())
    return folder


def sacrebleu(files: Path, *arguments: str, references: tuple[str, ...] = ("ref",)) -> str:
    """Return the command's output for the metrics of `METRICS`, nine digits behind the point."""
    command = [sys.executable, "-m", "sacrebleu", *references, "-m", *METRICS, "-w", "9", "-q"]
    done = subprocess.run(
        [*command, *arguments], cwd=files, capture_output=True, check=True, encoding="utf-8"
    )
    return done.stdout


@pytest.fixture(scope="module")
def with_intervals(files: Path) -> dict[str, dict[str, Any]]:
    """The command's scores with confidence intervals, by our name of the metric."""
    output = sacrebleu(
        files, "-i", "system", "--confidence", "--confidence-n", str(RESAMPLES), "-f", "json"
    )
    return dict(zip(METRICS, json.loads(output), strict=True))


def load(name: str, cache: Path) -> Any:
    return evaluate.load(metric_path(name), cache_dir=str(cache))


# ------------------------------------------------------------------ modules for evaluate


@pytest.mark.parametrize("name", ["bleu", "chrf"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_module_equals_the_command(
    name: str, nested: bool, tmp_path: Path, with_intervals: dict[str, dict[str, Any]]
) -> None:
    metric = load(name, tmp_path)
    references = [[text] for text in REFERENCES] if nested else REFERENCES
    found = metric.compute(predictions=SYSTEM, references=references, num_resamples=RESAMPLES)
    expected = with_intervals[name]
    assert round(found["score"], 9) == expected["score"]
    assert found["signature"] == expected["signature"]
    assert round(found["mean"], 9) == expected["confidence_mean"]
    assert round(found["margin"], 9) == expected["confidence_var"]


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_module_takes_several_references(name: str, tmp_path: Path, files: Path) -> None:
    output = sacrebleu(files, "-i", "system", "-f", "json", references=("ref", "other"))
    expected = json.loads(output)[METRICS.index(name)]
    several = [list(pair) for pair in zip(REFERENCES, OTHERS, strict=True)]
    found = load(name, tmp_path).compute(predictions=SYSTEM, references=several)
    assert round(found["score"], 9) == expected["score"]
    assert found["signature"] == expected["signature"]
    assert found["signature"].startswith("nrefs:2|")


def test_module_splits_as_it_is_told(tmp_path: Path) -> None:
    texts = {
        "predictions": ["\u4f60\u597d\u5417\u554a"],
        "references": ["\u4f60\u597d\u5417\u554a"],
    }
    metric = load("bleu", tmp_path)
    assert metric.compute(**texts)["score"] == 0.0
    found = metric.compute(**texts, tokenize="zh")
    assert round(found["score"], 9) == 100.0
    assert "|tok:zh|" in found["signature"]


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_module_in_batches_is_the_module_at_once(name: str, tmp_path: Path) -> None:
    metric = load(name, tmp_path)
    for start in (0, 3):
        part = slice(start, start + 3)
        metric.add_batch(predictions=SYSTEM[part], references=REFERENCES[part])
    found = metric.compute()
    score = getattr(score_translations(SYSTEM, REFERENCES, metrics=(name,)), name)
    assert found == {"score": score.score, "signature": score.signature}


def test_perplexity_weighs_tokens_alike(tmp_path: Path) -> None:
    # 8 tokens at ln 2 and 2 tokens at ln 32 are (8 * 1 + 2 * 5) / 10 bits a token.
    nats = [8 * math.log(2), 2 * math.log(32)]
    found = load("perplexity", tmp_path).compute(predictions=nats, references=[8, 2])
    assert found["perplexity"] == pytest.approx(2**1.8, rel=1e-12)
    assert found["nats_per_token"] == pytest.approx(1.8 * math.log(2), rel=1e-12)


def test_bits_per_character_counts_code_points(tmp_path: Path) -> None:
    texts = ["ab\u00fc\U0001f600", "", "cd"]  # 6 code points, 11 bytes
    nats = [9 * math.log(2), math.log(2), 2 * math.log(2)]
    found = load("bits_per_character", tmp_path).compute(predictions=nats, references=texts)
    assert found["bits_per_character"] == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("bleu", {"predictions": ["a"], "references": [[]]}, "a text for each, but one holds"),
        (
            "bleu",
            {"predictions": ["a"], "references": ["a"], "tokenize": "jp"},
            "`tokenize` must be one of none, zh, .*, but is 'jp'",
        ),
        ("chrf", {"predictions": ["a"], "references": ["a"], "num_resamples": 1}, "0 or at least"),
        ("perplexity", {"predictions": [1.0], "references": [0]}, "numbers of tokens"),
        ("bits_per_character", {"predictions": [1.0], "references": [""]}, "all are empty"),
    ],
    ids=["references", "tokenize", "resamples", "tokens", "characters"],
)
def test_module_names_mistakes(
    name: str, arguments: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        load(name, tmp_path).compute(**arguments)


def test_metric_path_names_folders_only() -> None:
    for name in METRIC_NAMES:
        assert (Path(metric_path(name)) / f"{name}.py").is_file()
    with pytest.raises(ValueError, match=r"`name` must be one of 'bleu', .*, but is 'meteor'"):
        metric_path("meteor")


# ------------------------------------------------------------------ intervals and comparisons


def test_confidence_equals_the_command(with_intervals: dict[str, dict[str, Any]]) -> None:
    scores = score_translations(SYSTEM, REFERENCES, num_resamples=RESAMPLES)
    for metric, expected in with_intervals.items():
        found = getattr(scores, metric)
        assert round(found.score, 9) == expected["score"]
        assert found.signature == expected["signature"]
        assert round(found.confidence.mean, 9) == expected["confidence_mean"]
        assert round(found.confidence.margin, 9) == expected["confidence_var"]


def test_comparison_equals_the_command(files: Path) -> None:
    # The command's JSON cannot hold this test's numbers, its table can: two rows of
    # "score (mean +- margin)" for each metric, then a row of p-values.
    arguments = ["-i", "baseline", "system", "--paired-bs", "--paired-bs-n", str(RESAMPLES)]
    output = sacrebleu(files, *arguments, "-f", "text")
    numbers = re.findall(r"([\d.]+) \(([\d.]+) \u00b1 ([\d.]+)\)", output)
    p_values = re.findall(r"\(p = ([\d.]+)\)", output)
    assert (len(numbers), len(p_values)) == (6, 3)
    found = compare_translations(BASELINE, SYSTEM, REFERENCES, num_resamples=RESAMPLES)
    for index, metric in enumerate(METRICS):
        pair = found.scores[metric]
        for score, row in ((pair.baseline, numbers[index]), (pair.system, numbers[3 + index])):
            assert score.confidence is not None
            ours = (score.score, score.confidence.mean, score.confidence.margin)
            assert [f"{number:.9f}" for number in ours] == list(row)
            assert f" {score.signature}\n" in output + "\n"
        assert f"{pair.p_value:.4f}" == p_values[index]


def test_comparison_with_several_references_equals_the_command(files: Path) -> None:
    arguments = ["-i", "baseline", "system", "--paired-bs", "--paired-bs-n", str(RESAMPLES)]
    output = sacrebleu(files, *arguments, "-f", "text", references=("ref", "other"))
    numbers = re.findall(r"([\d.]+) \(([\d.]+) \u00b1 ([\d.]+)\)", output)
    p_values = re.findall(r"\(p = ([\d.]+)\)", output)
    several = [list(pair) for pair in zip(REFERENCES, OTHERS, strict=True)]
    found = compare_translations(BASELINE, SYSTEM, several, num_resamples=RESAMPLES)
    assert found.num_translations == 5
    for index, metric in enumerate(METRICS):
        pair = found.scores[metric]
        assert f"{pair.baseline.score:.9f}" == numbers[index][0]
        assert f"{pair.system.score:.9f}" == numbers[3 + index][0]
        assert f"{pair.p_value:.4f}" == p_values[index]
        assert pair.system.signature.startswith("nrefs:2|")


def test_a_system_does_not_differ_from_itself() -> None:
    found = compare_translations(SYSTEM, SYSTEM, REFERENCES, metrics=("chrf",), num_resamples=9)
    assert list(found.scores) == ["chrf"]
    assert found.scores["chrf"].baseline.score == found.scores["chrf"].system.score
    # No drawn difference is larger than none: (0 + 1) / (9 + 1).
    assert found.scores["chrf"].p_value == pytest.approx(0.1)


def test_command_line_prints_both(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["score", "--references", str(files / "ref"), "--hypotheses", str(files / "system")]
    arguments += ["--num_resamples", str(RESAMPLES)]
    assert main([*arguments, "--confidence"]) == 0
    scores = score_translations(SYSTEM, REFERENCES, num_resamples=RESAMPLES)
    output = capsys.readouterr().out
    assert output == f"{scores}\n"
    assert scores.bleu is not None
    assert scores.bleu.confidence is not None
    assert f" +- {scores.bleu.confidence.margin:.2f}  nrefs:1|bs:{RESAMPLES}|" in output

    compare = [*arguments, "--compare", str(files / "baseline")]
    assert main(compare) == 0
    found = compare_translations(BASELINE, SYSTEM, REFERENCES, num_resamples=RESAMPLES)
    output = capsys.readouterr().out
    assert output == f"{found}\n"
    assert f"  p = {found.scores['ter'].p_value:.4f}\n" in output
    assert main([*compare, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found.to_dict()


@pytest.mark.parametrize("flags", [["other"], ["--references", "other"]], ids=["one", "two"])
def test_command_line_takes_several_references(
    flags: list[str], files: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(files)
    several = [list(pair) for pair in zip(REFERENCES, OTHERS, strict=True)]
    arguments = ["score", "--hypotheses", "system", "--references", "ref", *flags]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{score_translations(SYSTEM, several)}\n"
    assert main([*arguments, "--bleu_tokenize", "char", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == score_translations(SYSTEM, several, bleu_tokenize="char").to_dict()
    output = sacrebleu(
        files, "-i", "system", "-f", "json", "-tok", "char", references=("ref", "other")
    )
    bleu = json.loads(output)[0]
    assert (round(found["bleu"]["score"], 9), found["bleu"]["signature"]) == (
        bleu["score"], bleu["signature"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--references", "short"], "'ref' has 5 and 'short' has 1."),
        (["--hypotheses", "other"], "`--hypotheses` must be given once, but is given again with"),
        (["--bleu_tokenize", "jp"], "`--bleu_tokenize` must be one of none, zh,"),
        (["--bleu_tokenize", "ko-mecab"], "it needs `pip install 'sacrebleu[ko]'`."),
        (["--num_resamples", "1"], "`--num_resamples` must be at least 2, but is 1."),
        (["--compare", "none"], "existing file, but is 'none'."),
        (["--compare", "short"], "`--compare` and `--references` must have the same number"),
    ],
    ids=["references", "twice", "tokens", "package", "resamples", "missing", "length"],
)
def test_command_line_names_mistakes(
    arguments: list[str],
    sentence: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    (files / "short").write_text("a\n")
    assert main(["score", "--references", "ref", "--hypotheses", "system", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_resamples_are_checked() -> None:
    with pytest.raises(ValueError, match="`num_resamples` must be 0 or at least 2, but is -1"):
        score_translations(["a"], ["a"], num_resamples=-1)
    with pytest.raises(ValueError, match="`num_resamples` must be at least 2, but is 1"):
        compare_translations(["a"], ["a"], ["a"], num_resamples=1)
