"""The ladder of translation: its rungs, its results and its command line, on tiny data."""

import json
import lzma
import re
from pathlib import Path
from typing import Any

import ladder
import pytest
from ladder_rungs import RUNGS, Rung, find_rung, keep, listing, markdown, read_results
from sources import ROOT

from hf_qrnn.training.loop import LoopOptions
from hf_qrnn.training.options import PublishOptions, RunOptions, parse_options
from hf_qrnn.training.translation_task import TranslationTask

RECIPE = """
embedding_size: 16
hidden_size: 16
encoder_layers: 1
decoder_layers: 1
encoder_bidirectional: true
reverse_source: false
residual: true
rms_norm: true
attention_layers: all
num_attention_heads: 2
max_tokens: 256
max_steps: 4
eval_every: 2
"""


def record(name: str, bleu: float = 10.0, **more: Any) -> dict[str, Any]:
    about = {"rung": name, "command": f"ladder {name}", "date": "2026-12-01"}
    speeds = {"train_chars_per_second": 2000, "decode_chars_per_second": 30_000}
    counts = {"parameters": 5000, "updates": 40, "seconds": 480.0}
    return {**about, "bleu": bleu, "chrf": 30.0, **counts, **speeds, **more}


def setting(folder: Path, **more: Any) -> ladder.Setting:
    given: dict[str, Any] = {"minutes": 1.0, "seed": 0, "again": False}
    return ladder.Setting(folder, folder / "runs", folder / "ladder.jsonl", **(given | more))


def make_data(folder: Path) -> Path:
    folder.mkdir()
    german = [f"ein Hund {x}" for x in "abcdefgh"]
    english = [f"a dog {x}" for x in "abcdefgh"]
    for language, lines in (("de", german), ("en", english)):
        packed = lzma.compress("".join(f"{line}\n" for line in lines).encode())
        (folder / f"train.{language}.xz").write_bytes(packed)
        (folder / f"val.{language}").write_text("".join(f"{line}\n" for line in lines[:3]))
    return folder


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_every_rung_is_a_change_that_the_script_knows(rung: Rung, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    kinds = (*TranslationTask.kinds, LoopOptions, RunOptions, PublishOptions)
    given = setting(data)
    base = parse_options(kinds, ladder.training_flags(RUNGS[0], tmp_path / "run", given))
    changed = parse_options(kinds, ladder.training_flags(rung, tmp_path / "run", given))
    assert (base != changed) == bool(rung.flags)


def test_names_are_told_apart() -> None:
    assert len({rung.name for rung in RUNGS}) == len(RUNGS) == len({rung.what for rung in RUNGS})
    assert [find_rung(rung.name) for rung in RUNGS] == list(RUNGS)
    with pytest.raises(ValueError, match=r"^a rung must be one of base, .*, but is 'Base'\.$"):
        find_rung("Base")


def test_a_result_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ladder.jsonl"
    assert read_results(path) == {}
    for name, bleu in (("ifo", 9.0), ("base", 10.0), ("ifo", 11.0)):
        keep(record(name, bleu), path)
    assert [json.loads(x)["rung"] for x in path.read_text().splitlines()] == ["base", "ifo"]
    assert read_results(path)["ifo"]["bleu"] == 11.0
    assert [found.name for found in path.parent.iterdir()] == ["ladder.jsonl"]


def test_the_list_counts_what_is_missing() -> None:
    text, missing = listing({"base": record("base")}, lambda rung: f"run {rung.name}")
    assert missing == len(RUNGS) - 1
    assert text.startswith("base: BLEU 10.00, chrF 30.00, 40 updates in 480 s, 2026-12-01\n")
    assert "\nplain: MISSING\n    run plain\n" in text
    assert listing({rung.name: record(rung.name) for rung in RUNGS}, lambda rung: "")[1] == 0


def test_the_table_sets_a_change_beside_the_recipe() -> None:
    faster = record("deep-6-2", 9.25, decode_chars_per_second=45_000)
    text = markdown({"base": record("base"), "deep-6-2": faster})
    assert "| 10.00 | 30.00 | 5,000 | 40 | 2,000 (1.00 x) | 30,000 (1.00 x) |" in text
    assert "| 9.25 (-0.75) | 30.00 | 5,000 | 40 | 2,000 (1.00 x) | 45,000 (1.50 x) |" in text
    assert text.count("| - |") >= len(RUNGS) - 2


def test_the_document_has_the_table_of_the_stored_results() -> None:
    page = (ROOT / "docs" / "ladder.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"<!-- table -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert written.strip() == markdown(read_results()), (
        "write the output of `python benchmarks/ladder.py --table` into the page"
    )


def test_a_rung_is_trained_judged_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setattr(ladder, "RECIPE", tmp_path / "tiny.yaml")
    data, path = make_data(tmp_path / "data"), tmp_path / "ladder.jsonl"
    words = ["--data", str(data), "--out", str(tmp_path / "runs"), "--results", str(path)]
    assert ladder.main([*words, "base", "one-way"]) == 0
    found = read_results(path)
    assert list(found) == ["base", "one-way"]
    assert found["base"]["updates"] == 4
    assert found["base"]["sentences"] == 3
    assert found["base"]["command"] == "python benchmarks/ladder.py --data data --minutes 8 base"
    assert found["one-way"]["flags"] == ["--encoder_bidirectional", "false"]
    assert found["base"]["parameters"] != 0
    capsys.readouterr()
    before = path.read_text()
    assert ladder.main([*words, "base"]) == 0
    assert "skipped base: it has a result" in capsys.readouterr().out
    assert path.read_text() == before
    assert ladder.main([*words, "--seed", "1", "--again", "base"]) == 0
    assert read_results(path)["base"]["seed"] == 1
    assert ladder.main(["--results", str(path), "--list", "--table"]) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "a RUNG, --all, --list or --table must be given, but none is."),
        (["base"], "`--data` must be given to run a rung, but is not."),
        (["base", "--data", "nowhere"], "`--data` must be a folder, but 'nowhere' is none."),
        (["--list", "--minutes", "0"], "`--minutes` must be above 0, but is 0.0."),
        (["higher"], "a rung must be one of base, "),
    ],
)
def test_a_refusal_is_one_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ladder.main(words) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_data_that_lack_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`data` must have a file train\.de\[\.xz\|\.gz\], but"):
        setting(tmp_path).file("train.de")
