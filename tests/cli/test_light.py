"""`hf-qrnn` imports what a command needs: nobody waits for torch to read a page of help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "numpy", "tokenizers", "huggingface_hub", "matplotlib", "yaml")
# Argument 1 says, in words divided by blanks, what must not be imported.
PROGRAM = """
import sys
from hf_qrnn.cli.main import main
forbidden, *arguments = sys.argv[1:]
try:
    status = main(arguments)
except SystemExit as end:
    status = end.code
found = sorted(set(forbidden.split()) & set(sys.modules))
sys.exit(f"{found} were imported" if found else status)
"""
COMMANDS = (
    "translate",
    "pronounce",
    "score",
    "quantize",
    "push",
    "verify",
    "info",
    "bench",
    "states",
)
# What is wrong can be seen without loading anything.
MISTAKES = {
    "no command": "",
    "no such command": "translat",
    "no such flag": "translate model --beams 3",
    "no number": "translate model --num_beams many",
    "no beams": "translate model --num_beams 0",
    "more than beams": "translate model --num_beams 1 --n_best 2",
    "no file": "translate model --input {folder}/absent",
    "no picture": "translate model --attention map.txt",
    "no folder": "translate model --output {folder}/absent/file",
    "no words": "pronounce --model model --num_beams 0",
    "no hypotheses": "score --references {folder}/lines",
    "no samples": "score --references {folder}/lines --hypotheses {folder}/lines --num_resamples 1",
    "no threads": "bench --threads 0",
    "no minutes": "bench --minutes 0",
    "no model": "push",
    "no output": "quantize {folder}",
    "no kind of picture": "states model -o map.txt --text a",
    "no text": "states model -o map.png --text ",
    "no model to tell of": "info {folder}",
}


def run(forbidden: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, " ".join(forbidden), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lines").write_text("ein Hund\neine Katze\n")
    return tmp_path


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    done = run((*HEAVY, "sacrebleu"), *command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: hf-qrnn")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_before_anything_heavy_is_imported(
    mistake: str, folder: Path
) -> None:
    # sacrebleu, which knows the names of its tokenizers, is light; it takes numpy along.
    done = run(
        tuple(name for name in HEAVY if name != "numpy"),
        *MISTAKES[mistake].format(folder=folder).split(),
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_files_are_scored_without_torch(folder: Path) -> None:
    lines = str(folder / "lines")
    done = run(("torch", "transformers"), "score", "--references", lines, "--hypotheses", lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert "100" in done.stdout


def test_info_needs_torch_alone() -> None:
    done = run(("transformers",), "info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pooling backends" in done.stdout
