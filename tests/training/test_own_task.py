"""A user's own task: the program in docs/own_task.md, which is run as it stands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 64, "embedding_size": 32, "encoder_layers": 1, "decoder_layers": 1}
LOOP = {"max_steps": 120, "eval_every": 40, "learning_rate": 0.01, "max_tokens": 512}
OPTIONS = {"output_dir": "out", "num_threads": 1, **SIZES, **LOOP}
FLAGS = ["--cpu", *(text for k, v in OPTIONS.items() for text in (f"--{k}", str(v)))]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    page = (ROOT / "docs" / "own_task.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(text.splitlines()) <= 42
    (tmp_path / "reversal.py").write_text(text)
    return tmp_path / "reversal.py"


def run(program: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *flags],
        cwd=program.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_task_of_the_docs_learns_and_its_metric_chooses_the_best_model(program: Path) -> None:
    done = run(program, *FLAGS)
    assert done.returncode == 0, done.stderr
    out = program.parent / "out"
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    valid = [record for record in records if record["kind"] == "valid"]
    assert [record["step"] for record in valid] == [40, 80, 120]
    best = max(valid, key=lambda record: (record["reversed"], -record["loss"]))
    assert best["is_best"]
    assert best["reversed"] > 0.5
    ended = json.loads((out / "training.json").read_text())
    assert (ended["best"], ended["best_loss"]) == (best["reversed"], best["loss"])
    assert json.loads((out / "run.json").read_text())["metric"] == "reversed"
    assert "by reversed in validation" in (out / "README.md").read_text()
    assert AutoModelForSeq2SeqLM.from_pretrained(out).config.hidden_size == 64


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        (["--metric", "bleu"], "unrecognized arguments: --metric bleu (see reversal.py --help)"),
        (["--init_from", "x"], "unrecognized arguments: --init_from x (see reversal.py --help)"),
    ],
)
def test_flags_that_the_task_has_no_use_for_are_refused(
    program: Path, flag: list[str], sentence: str
) -> None:
    done = run(program, *FLAGS, *flag)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (program.parent / "out").exists()


def test_help_offers_no_base_to_a_task_that_begins_anew(program: Path) -> None:
    done = run(program, "--help")
    assert done.returncode == 0, done.stderr
    assert "--init_from" not in done.stdout
    assert "--hidden_size" in done.stdout


def test_a_metric_that_is_not_measured_is_told_before_anything_is_written(program: Path) -> None:
    text = program.read_text().replace('metric = "reversed"', 'metric = "exactness"')
    program.write_text(text)
    done = run(program, *FLAGS)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == (
        "error: `metric` must be one of what the task measures, loss, reversed, but is 'exactness'."
    )
    assert "Traceback" not in done.stderr
    assert not (program.parent / "out").exists()


def test_a_task_that_only_says_what_it_does_has_a_card_whose_program_runs(program: Path) -> None:
    text = program.read_text().replace(
        '    metric = "reversed"\n',
        '    metric = "reversed"\n    words = CardWords(does="reverses words")\n',
    )
    program.write_text(text.replace(
        "from hf_qrnn.training.evaluation",
        "from hf_qrnn.training.card_words import CardWords\nfrom hf_qrnn.training.evaluation",
    ))  # fmt: skip
    done = run(program, *FLAGS, "--max_steps", "2", "--eval_every", "2")
    assert done.returncode == 0, done.stderr
    card = (program.parent / "out/README.md").read_text()
    assert "that reverses words, made with" in card
    assert "\npython reversal.py --cpu" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=program.parent, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['")
