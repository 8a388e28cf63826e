"""Tests that the commands and programs of the README work."""

import io
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.cli.main import main
from hf_qrnn.data.tokenization import train_character_tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def saved_model(folder: Path) -> None:
    tokenizer = train_character_tokenizer(["Der Lehrer ruft den Arzt an."])
    torch.manual_seed(0)
    config = QRNNConfig(
        vocab_size=len(tokenizer), embedding_size=8, hidden_size=8, encoder_layers=1,
        decoder_layers=1,
    )  # fmt: skip
    model = QRNNForConditionalGeneration(config)
    model.generation_config.max_length = 20
    # A teacher's translations must end, or there is nothing to learn of them.
    source, target = (torch.tensor([tokenizer(x)["input_ids"]]) for x in ("Der Arzt ruft.", "ruft"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(20):
        model(source, labels=target).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Named by the last thing they import.
CODE = {
    re.findall(r"import (?:.*, )?(\w+)$", code, flags=re.M)[-1]: code
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
}
# What a reader should see at the end of the output.
SEES = {
    "AutoTokenizer": r"\['.*'\]\n",
    "pipeline": r"\[{'translation_text': '.*'}, {'translation_text': '.*'}\]\n",
    "QRNN": r"True\n",
    "pool": r"True True\n",
    "train_character_tokenizer": r"(20|19|18) of 20 reversed\n",
}


def test_every_python_example_is_tested() -> None:
    assert CODE.keys() == SEES.keys()


def test_first_example_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    saved_model(tmp_path / "runs/demo")
    result = subprocess.run(
        [sys.executable, "-c", CODE["AutoTokenizer"]],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert re.search(SEES["AutoTokenizer"] + r"\Z", result.stdout), result.stdout


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # Trainer's default, without a GPU
@pytest.mark.parametrize("name", [name for name in SEES if name != "AutoTokenizer"])
def test_example_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved_model(tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(CODE[name], encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"))
    output = capsys.readouterr().out
    assert re.search(SEES[name] + r"\Z", output), output


@pytest.mark.parametrize(
    "command",
    re.findall(
        r"^\| `(hf-qrnn (?:translate|pronounce|score|distill|quantize|info|bench)[^`]*)`",
        README,
        flags=re.M,
    ),
)
def test_every_command_of_the_table_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_model(tmp_path / "runs/demo")
    saved_model(tmp_path / "runs/other")
    for name in ("in.de", "out.en", "ref.en", "other.en"):
        (tmp_path / name).write_text("Der Arzt ruft.\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "hf_qrnn.speed.paper_table.QUICK_CELLS", ((1, 2),)
    )  # the rest is a matter of time
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Der Arzt.\n")))
    assert main(shlex.split(command)[1:]) == 0


def test_word_list_becomes_a_pronouncer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [x for x in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL) if "words.tsv" in x]
    train, say = block.replace("\\\n", " ").splitlines()
    program, script, *flags = shlex.split(train)
    assert program == "python"
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    words = ("".join(pair) for pair in itertools.product("bonjur", "bonjur", "bonjur"))
    rows = (f"{word}\t{' '.join(word).upper()}\n" for word in words)
    (tmp_path / "words.tsv").write_text("".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    few = ["--max_steps", "4", "--eval_every", "2", "--save_every", "2", "--max_tokens", "100"]
    few += ["--embedding_size", "16", "--hidden_size", "16", "--cpu"]
    main_of = runpy.run_path(str(tmp_path / script))["main"]
    AcceleratorState._reset_state(True)  # the recipe's mixed precision is another than most tests'
    try:
        assert main_of([*flags, *few]) == 0
    finally:
        AcceleratorState._reset_state(True)
    run = json.loads((tmp_path / "runs/words/run.json").read_text())
    assert run["metric"] == "word_error_rate"
    assert 0 < run["data"]["valid"] < 30
    assert run["data"]["train"] + run["data"]["valid"] == 6**3
    capsys.readouterr()
    command, *words_and_flags = shlex.split(say)
    assert command == "hf-qrnn"
    assert main(words_and_flags) == 0
    # Four updates do not teach much: it is said or refused.
    assert re.fullmatch(r"bonjour\t(\t# has no .*|[BONJUR ]+)\n", capsys.readouterr().out)


def test_every_file_it_names_exists() -> None:
    names = re.findall(r"`((?:hf_qrnn|demo|scripts|docs|model_cards|benchmarks)/[\w./-]+)`", README)
    assert len(names) >= 12
    missing = [name for name in names if not (ROOT / name).exists()]
    assert missing == []


def test_it_opens_with_the_two_commands() -> None:
    head = README[:200]
    assert "make run" in head
    assert "make test" in head
