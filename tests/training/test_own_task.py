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
        (["--init_from", "x"], "`--init_from` must be left out for a task that begins with random"),
    ],
)
def test_flags_that_the_task_has_no_use_for_are_refused(
    program: Path, flag: list[str], sentence: str
) -> None:
    done = run(program, *FLAGS, *flag)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (program.parent / "out").exists()
