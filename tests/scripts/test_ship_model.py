"""A run's model is put into the box whole, and its code is written anew."""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pronouncing import save_pronouncer, sounds
from safetensors.torch import load_file

from hf_qrnn.pronunciation import Pronouncer

PATH = Path(__file__).resolve().parents[2] / "scripts/ship_model.py"
WORDS = ["bake", "sax", "ki", "a'b"]


@pytest.fixture(scope="module")
def ship_model() -> Any:
    spec = importlib.util.spec_from_file_location("ship_model", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_pronouncer(tmp_path_factory.mktemp("run")))


def options(**given: Any) -> argparse.Namespace:
    empty = {"refresh": False, "run": None, "name": None, "sample": None, "lines": 300}
    return argparse.Namespace(**{**empty, **given})


def test_model_is_saved_in_half_precision_with_its_sample(
    ship_model: Any, run_folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.tsv"
    rows = [f"{word}\t{' '.join(sounds(word))}" for word in WORDS]
    # Two right answers are one source; the last word is wrong, and the next one too many.
    rows.insert(1, "bake\tB B")
    rows[-1] = "a'b\tK"
    table.write_text("\n".join([*rows, "sss\tS S S"]) + "\n")
    given = options(run=run_folder, name="mine", sample=table, lines=4)
    ship_model.run(given, box=tmp_path)
    folder = tmp_path / "mine"
    assert {x.dtype for x in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert (folder / "sample.tsv").read_text().splitlines() == rows
    scores = json.loads((folder / "sample.json").read_text())
    phones = (4 + 2) / 2 + 4 + 2 + 1  # of several references the mean length counts
    assert scores["lines"] == 4
    assert scores["word_error_rate"] == 0.25
    assert scores["token_error_rate"] == pytest.approx(2 / phones, abs=1e-5)
    by_engine, by_torch = (
        Pronouncer(folder, device="cpu", engine=engine)("bake") for engine in ("auto", "torch")
    )
    assert by_engine.symbols == by_torch.symbols == sounds("bake")
    # Both compute in float32: sums in bfloat16 would differ by more than ten times as much.
    assert by_engine.confidence == pytest.approx(by_torch.confidence, abs=1e-6)


def test_code_is_written_anew(ship_model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "box" / "mine"
    folder.mkdir(parents=True)
    (folder / "gone_qrnn.py").write_text("old")
    (folder / "pooling_qrnn.py").write_text("old")
    (folder / "config.json").write_text("{}")
    other = tmp_path / "box" / "notes"  # no model: left alone
    other.mkdir()
    ship_model.run(options(refresh=True), box=tmp_path / "box")
    assert list(other.iterdir()) == []
    there = {path.name: path.read_bytes() for path in folder.glob("*.py")}
    assert there == {path.name: path.read_bytes() for path in ship_model.CODE.glob("*_qrnn.py")}
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Either `--run` .* or `--refresh`"),
        ({"refresh": True, "run": Path("x")}, "Either `--run` .* or `--refresh`"),
        ({"run": Path("x"), "name": "mine"}, "`--run` needs `--name` and `--sample`"),
        ({"run": Path("x"), "name": "m", "sample": Path("y"), "lines": 0}, "at least 1, but is 0"),
    ],
)
def test_mistakes_are_told(
    ship_model: Any, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ship_model.run(options(**given), box=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_is_refused(ship_model: Any, tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("a\tB\n")
    given = options(run=tmp_path, name="mine", sample=table)
    with pytest.raises(ValueError, match="`--run` must be the folder of a finished run"):
        ship_model.run(given, box=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.tsv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\tB\nb\n", "line 2 of `--sample` must have one tab"), ("", "`--sample` must have lines")],
)
def test_a_damaged_sample_changes_nothing(
    ship_model: Any, run_folder: Path, tmp_path: Path, text: str, message: str
) -> None:
    table = tmp_path / "table.tsv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        ship_model.run(options(run=run_folder, name="mine", sample=table), box=tmp_path)
    assert not (tmp_path / "mine").exists()
