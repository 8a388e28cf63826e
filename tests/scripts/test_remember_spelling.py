"""A saved model learns how its words are spelled, and nothing else of it changes."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pronouncing import save_pronouncer

from hf_qrnn.data.symbols import alphabet, spelling
from hf_qrnn.data.tokenization import load_tokenizer, train_character_tokenizer
from hf_qrnn.pronunciation import Pronouncer

PATH = Path(__file__).resolve().parents[2] / "scripts/remember_spelling.py"
COLUMNS = ["--source_lang", "word", "--target_lang", "phones", "--language_tag", "lang"]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("remember_spelling", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    return Path(save_pronouncer(folder, languages=["fre", "ice"], steps=0))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_remembers_and_is_else_as_it_was(
    script: Any, tagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tagged, folder)
    rows = [
        ("word", "phones", "lang"),
        ("bake", "B", "fre"),
        ("bakes", "B", "fre"),
        ("x", "K", "ice"),
    ]
    (tmp_path / "t.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    assert script.main([str(folder), str(tmp_path / "t.tsv"), *COLUMNS]) == 0
    said = [
        "fre: at most 2 new rows of letters a word",
        "ice: at most 1 new rows of letters a word",
    ]
    assert capsys.readouterr().out.splitlines() == said
    before, after = contents(tagged), contents(folder)
    changed = [name for name in after if before[name] != after[name]]
    assert changed == ["tokenizer_config.json"]
    fields = [json.loads(x[changed[0]]) for x in (before, after)]
    assert set(fields[1]) - set(fields[0]) == {"alphabets", "trigrams"}
    assert {name: fields[1][name] for name in fields[0]} == fields[0]
    tokenizer = load_tokenizer(str(folder))
    assert alphabet(tokenizer, "fre") == frozenset("bakes")
    known = spelling(tokenizer, "fre")
    assert known is not None
    assert known.new_rows("bakea") == ["kea", "ea "]
    found = Pronouncer(str(folder), language="fre", device="cpu")("sakbe")
    assert found.reason.startswith("is spelled like no word that the model has learnt")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("none.tsv", "`table` must be an existing file, but is"),
        ("bad.tsv", "must have 2 columns"),
        ("good.tsv", "`folder` must have a model with `--target_tokens blank`"),
    ],
)
def test_mistakes_change_nothing(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, sentence: str
) -> None:
    folder = tmp_path / "model"
    train_character_tokenizer(["ab"]).save_pretrained(folder)
    (tmp_path / "good.tsv").write_text("a\tb\n")
    (tmp_path / "bad.tsv").write_text("a\tb\tc\n")
    before = contents(folder)
    assert script.main([str(folder), str(tmp_path / table)]) == 2
    assert sentence in capsys.readouterr().err
    assert contents(folder) == before
