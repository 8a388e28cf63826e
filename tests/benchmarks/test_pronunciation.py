"""The pronunciation benchmark from the command line, on tiny data."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pronunciation
import pronunciation_data
import pronunciation_runs
import pytest
from pronunciation_data import Splits, entries
from pronunciation_rows import Row, parse_row
from pronunciation_runs import Setting, run_row, training_flags
from sources import ROOT
from stored_rows import RunFailedError

from hf_qrnn.training.run import run_task

RECIPE = """
source_tokens: char
target_tokens: blank
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
max_tokens: 64
max_steps: 4
eval_every: 2
save_every: 2
metric: word_error_rate
"""
SOUNDS = {"a": "ɑ̃", "b": "b", "c": "t͡ʃ"}


def words(number: int) -> list[str]:
    """Words over three letters, all of one length and then the next."""
    found: list[str] = []
    layer = [""]
    while len(found) < number:
        layer = [word + letter for word in layer for letter in SOUNDS]
        found += layer
    return found[:number]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tables of three languages, and a recipe that takes a second."""
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setattr(pronunciation_runs, "RECIPE", tmp_path / "tiny.yaml")
    monkeypatch.setattr(pronunciation_runs, "TIMED_ALONE", 2)
    monkeypatch.setattr(pronunciation_runs, "LANGUAGES", ("fre", "kor"))
    lines = [f"{word}\t{' '.join(SOUNDS[x] for x in word)}\n" for word in words(40)]
    for language in ("fre", "kor"):
        (tmp_path / f"{language}_train.tsv").write_text("".join(lines[:32]), encoding="utf-8")
        (tmp_path / f"{language}_dev.tsv").write_text("".join(lines[32:]), encoding="utf-8")
    return tmp_path


def run(folder: Path, *words: str) -> int:
    given = ["--data", str(folder), "--out", str(folder / "runs")]
    at = words.index("--") if "--" in words else len(words)
    results = ["--results", str(folder / "results")]
    return pronunciation.main([*words[:at], *given, *results, *words[at:]])


def result(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results" / f"{name}.json").read_text())
    return found


def setting(folder: Path, **more: Any) -> Setting:
    return Setting(folder / "runs", folder / "results", folder, **more)


# ------------------------------------------------------------------ rows that are trained


@pytest.mark.parametrize("model", ["qrnn", "transformer", "lstm"])
def test_every_architecture_is_trained_judged_and_stored(folder: Path, model: str) -> None:
    name = f"fre-{model}-single-0"
    # The transformer's recipe has batches of thousands of tokens.
    assert run(folder, name, "--minutes", "5", "--", "--max_tokens", "64") == 0
    found = result(folder, name)
    assert found["row"] == name
    assert found["command"] == (
        f"python benchmarks/pronunciation.py {name} --minutes 5 --data {folder.name} "
        "-- --max_tokens 64"
    )
    assert (found["updates"], found["models"], found["seed"], found["minutes"]) == (4, 1, 0, 5)
    assert found["data"] == "SIGMORPHON 2021 task 1, fre: 32 training words, 8 dev words"
    assert found["signature"].startswith("words:8|refs:1|unit:phone|beams:5|version:hf_qrnn-")
    assert 0 <= found["wer"] <= 100
    assert found["wer"] == found["wer_first"]
    assert "wer_stress" not in found
    assert found["seconds"] > 0
    assert min(found["words_per_second"], found["ms_per_word"], found["parameters"]) > 0
    # The card that a run writes is a QRNN's.
    assert (folder / "runs" / name / "README.md").exists() is (model == "qrnn")
    said = (folder / "runs" / "hypotheses" / f"{name}.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in said] == words(40)[32:]


def test_a_row_with_a_result_is_skipped_unless_asked_for_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "fre-qrnn-single-0"
    assert run(folder, name) == 0
    path = folder / "results" / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "wer": 1.5}))
    assert run(folder, name) == 0
    assert f"skipped {name}: it has a result" in capsys.readouterr().out
    assert result(folder, name)["wer"] == 1.5
    assert run(folder, name, "--again") == 0
    assert result(folder, name)["wer"] != 1.5
    assert (folder / "runs" / f"{name}.replaced").is_dir()


def test_an_interrupted_row_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fre-lstm-single-0"

    def stopped(kind: Any, flags: Sequence[str]) -> int:
        """End after two updates, as a signal would."""
        run_task(kind, [*flags, "--max_steps", "2"])
        return 75

    monkeypatch.setattr(pronunciation_runs, "run_task", stopped)
    assert run(folder, name) == 75
    assert not (folder / "results").exists()
    monkeypatch.setattr(pronunciation_runs, "run_task", run_task)
    assert run(folder, name) == 0
    assert result(folder, name)["updates"] == 4
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    steps = [x["step"] for x in map(json.loads, lines) if x["kind"] == "valid"]
    assert steps == [2, 4]
    assert not list((folder / "runs").glob("*.replaced*"))


def test_all_models_get_the_same_flags_but_for_the_transformers_recipe(folder: Path) -> None:
    seen = {}
    for model in ("qrnn", "transformer", "lstm"):
        flags = training_flags(Row("fre", model), Path("x"), setting(folder, minutes=3))
        seen[model] = dict(zip(flags[:-1:2], flags[1::2], strict=False))
    assert seen["qrnn"] == seen["lstm"]
    assert seen["qrnn"]["--max_minutes"] == "3"
    own = {x[2:] for x in seen["transformer"] if seen["transformer"][x] != seen["qrnn"].get(x)}
    assert own == {*pronunciation_runs.TRANSFORMER_RECIPE, "warmup_steps"}


@pytest.mark.parametrize(
    ("name", "given", "warm_up"),
    [
        ("fre-transformer-single-0", {"minutes": 10}, "120"),
        ("fre-transformer-single-0", {"minutes": 0.1}, "50"),
        ("fre-transformer-single-0-updates", {"updates": 20_000}, "4000"),
        ("fre-transformer-single-0-updates", {"updates": 90_000}, "4000"),
    ],
)
def test_the_transformer_warms_up_for_a_fifth(
    folder: Path, name: str, given: dict[str, Any], warm_up: str
) -> None:
    flags = training_flags(parse_row(name), Path("x"), setting(folder, **given))
    assert flags[flags.index("--warmup_steps") + 1] == warm_up


def test_equal_updates_are_those_of_the_qrnn(folder: Path) -> None:
    row = parse_row("fre-lstm-single-0-updates")
    with pytest.raises(ValueError, match=r"`updates` must be given .* fre-qrnn-single-0 have a re"):
        training_flags(row, Path("x"), setting(folder))
    assert run(folder, "fre-qrnn-single-0", row.name) == 0
    found = result(folder, row.name)
    assert found["updates"] == result(folder, "fre-qrnn-single-0")["updates"] == 4
    assert "minutes" not in found
    flags = training_flags(row, Path("x"), setting(folder, updates=7))
    assert flags[flags.index("--max_steps") + 1] == "7"
    assert "--max_minutes" not in flags


def test_a_joint_model_is_trained_once_and_judged_on_each_language(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, "fre-qrnn-joint-0", "kor-qrnn-joint-0", "--again") == 0
    assert {"updates": 4}.items() <= result(folder, "kor-qrnn-joint-0").items()
    assert result(folder, "fre-qrnn-joint-0")["data"].startswith("SIGMORPHON 2021 task 1, fre")
    made = sorted(path.name for path in (folder / "runs").iterdir())
    assert made == ["data", "hypotheses", "joint-qrnn-0"]
    table = (folder / "runs" / "data" / "joint" / "train.tsv").read_text().splitlines()
    assert table[0] == "word\tphones\tlanguage"
    assert len(table) == 1 + 2 * 32
    flags = training_flags(parse_row("fre-qrnn-joint-0"), Path("x"), setting(folder, minutes=3))
    assert flags[flags.index("--language_tag") + 1] == "language"
    assert flags[flags.index("--max_minutes") + 1] == "6"  # as many for each language


# ------------------------------------------------------------------ English


PHONES = [("one", "W AH1 N"), ("one", "HH W AH1 N"), ("two", "T UW1"), ("ten", "T EH1 N")]


def english(monkeypatch: pytest.MonkeyPatch) -> None:
    known = entries(PHONES)
    splits = Splits(known[:2], known[:1], known, "a little English")
    monkeypatch.setattr(pronunciation_runs, "load_splits", lambda data, folder: splits)


def test_english_is_judged_with_and_without_stress(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    english(monkeypatch)
    assert run(folder, "cmudict-qrnn-single-0") == 0
    found = result(folder, "cmudict-qrnn-single-0")
    assert {"wer", "wer_first", "wer_stress", "wer_first_stress", "per_stress"} <= found.keys()
    assert "|refs:any|unit:phone|stress:no|" in found["signature"]
    data = folder / "runs" / "data" / "cmudict"
    assert (data / "train.tsv").read_text().splitlines()[1:] == [
        "one\tW AH1 N", "one\tHH W AH1 N", "two\tT UW1",
    ]  # fmt: skip
    assert (data / "valid.tsv").read_text().splitlines()[1:] == ["one\tW AH1 N"]
    assert len((data / "test.tsv").read_text().splitlines()) == 1 + len(PHONES)


def test_rivals_are_judged_or_skipped_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    english(monkeypatch)
    assert run(folder, "cmudict-espeak", "--espeak", "no-espeak") == 0
    assert "skipped cmudict-espeak: there is no program 'no-espeak'" in capsys.readouterr().out
    assert not (folder / "results").exists()
    said = ["HH W AH1 N", "T UW2", ""]
    answer = SimpleNamespace(
        phones=said, seconds=0.5, about="espeak-ng 1.51", notes="", unmapped=["ten"]
    )
    monkeypatch.setattr(pronunciation_runs, "ask", lambda *_, **__: answer)
    assert run(folder, "cmudict-espeak") == 0
    found = result(folder, "cmudict-espeak")
    assert (found["wer"], found["wer_first"], found["wer_stress"]) == (33.333, 66.667, 66.667)
    assert (found["unmapped"], found["words_per_second"], found["about"]) == (
        1, 6.0, "espeak-ng 1.51",
    )  # fmt: skip
    assert "parameters" not in found
    assert run(folder, "cmudict-espeak", "--errors", "0") == 0
    out = capsys.readouterr().out
    assert out.endswith("cmudict-espeak\nten\t\tT EH N\n1 of 1 errors\n")


# ------------------------------------------------------------------ ensembles and distillation


def test_an_ensemble_is_of_five_rows_and_a_student_learns_from_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    commands: list[list[str]] = []
    monkeypatch.setattr(
        pronunciation_runs, "run_task", lambda kind, flags: trained.append(list(flags)) or 0
    )

    def distil(words: list[str]) -> int:
        commands.append(words)
        Path(words[-1]).write_text("")
        return 0

    monkeypatch.setattr(pronunciation_runs, "run_command", distil)
    (folder / "more.txt").write_text(f"abba\n\n{words(40)[35]}\nabba\n")
    row = parse_row("fre-qrnn-distilled-0")
    given = setting(folder, words=folder / "more.txt", n_best=2)
    folders = pronunciation_runs._folders(row, given)
    members = [folder / "runs" / f"fre-qrnn-single-{seed}" for seed in range(5)]
    assert folders == [folder / "runs" / row.name]
    assert [flags[flags.index("--seed") + 1] for flags in trained] == [*"01234", "0"]
    ((name, *teachers, _, n_best, source_flag, source, target_flag, target),) = commands
    assert (name, n_best, source_flag, target_flag) == ("distill", "2", "--source", "-o")
    assert teachers == list(map(str, members))
    # The judged word of the list is not among them, and a word is there once.
    assert Path(source).read_text().split() == [*words(32), "abba"]
    assert trained[-1][trained[-1].index("--distilled_file") + 1] == target
    pronunciation_runs._folders(row, given)
    assert len(commands) == 1  # what was distilled is there
    assert given.command(row).endswith(f"--data {folder.name} --words more.txt --n_best 2")
    ensemble = parse_row("fre-qrnn-ensemble-0")
    assert pronunciation_runs._folders(ensemble, given) == members


def test_an_ensemble_and_its_student_are_trained_and_judged(
    folder: Path,
) -> None:
    two = ("--members", "2")
    # Enough for some words to be said to their end: only those are learnt from.
    updates = {"max_steps": 40, "eval_every": 40, "save_every": 40, "learning_rate": 0.01}
    enough = [word for name, value in updates.items() for word in (f"--{name}", str(value))]
    assert run(folder, "fre-qrnn-ensemble-0", *two, "--", *enough) == 0
    ensemble = result(folder, "fre-qrnn-ensemble-0")
    assert (ensemble["models"], ensemble["updates"]) == (2, 80)
    assert " --members 2 -- --max_steps 40 " in ensemble["command"]
    assert not (folder / "results" / "fre-qrnn-single-0.json").exists()
    assert run(folder, "fre-qrnn-distilled-0", *two, "--", *enough) == 0
    student = result(folder, "fre-qrnn-distilled-0")
    assert (student["models"], student["updates"]) == (1, 40)
    assert student["parameters"] == ensemble["parameters"] // 2
    written = folder / "runs" / "data" / "fre-qrnn-distilled-0" / "distilled-2-1.tsv"
    pairs = [line.split("\t") for line in written.read_text(encoding="utf-8").splitlines()]
    assert {word for word, *_ in pairs} <= set(words(32))
    options = json.loads((folder / "runs" / "fre-qrnn-distilled-0" / "run.json").read_text())
    assert options["options"]["distilled_file"] == [str(written)]


def test_a_run_that_failed_is_no_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pronunciation_runs, "run_task", lambda kind, flags: 3)
    with pytest.raises(RunFailedError):
        run_row(parse_row("fre-qrnn-ensemble-0"), setting(folder))
    assert run(folder, "fre-qrnn-single-0") == 3


# ------------------------------------------------------------------ reports and mistakes


def test_the_list_ends_with_1_while_a_row_is_missing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, "--list") == 1
    assert "fre-qrnn-single-0: MISSING\n    python benchmarks/pronunciation.py fre-qrnn-" in (
        capsys.readouterr().out
    )
    rows = (parse_row("fre-qrnn-single-0"),)
    monkeypatch.setattr("pronunciation_rows.TABLE", rows)
    monkeypatch.setattr(pronunciation, "TABLE", rows)
    assert run(folder, "--all", "--list") == 0
    out = capsys.readouterr().out
    assert out.endswith("1 of 1 rows have a result\n")
    assert run(folder, "--check") == 1  # nothing is proven by one language
    assert run(folder, "--table") == 0
    assert "| fre | " in capsys.readouterr().out


def test_tables_are_prepared_for_whoever_tunes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "fre-qrnn-single-0", "--prepare") == 0
    place = folder / "runs" / "data" / "fre"
    assert capsys.readouterr().out == f"{place}\n"
    assert {path.name for path in place.iterdir()} == {"train.tsv", "valid.tsv"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "a ROW, --all, --list, --table or --check must be given, but none is."),
        (["ger-qrnn-single-0"], "a row must be DATA-MODEL-VARIANT-SEED"),
        (["fre-qrnn-single-0", "--minutes", "0"], "`--minutes` must be above 0, but is 0.0."),
        (["fre-qrnn-single-0", "--threads", "0"], "`--threads` must be at least 1, but is 0."),
        (["fre-qrnn-single-0", "--n_best", "0"], "`--n_best` must be at least 1, but is 0."),
        (["fre-qrnn-single-0", "--members", "1"], "`--members` must be at least 2, but is 1."),
        (["fre-qrnn-single-0", "--updates", "-1"], "`--updates` must be at least 0, but is -1."),
        (["dut-qrnn-single-0"], "`--data` must be a folder with dut_train.tsv"),
        (["fre-qrnn-single-0", "--words", "no"], "`--words` must be a file, but 'no' is none."),
        (["fre-qrnn-single-0", "--errors", "-1"], "`--errors` must be at least 0, but is -1."),
        (["fre-qrnn-single-0", "--errors", "3"], "`--errors` must be of a row that was run"),
        (["fre-qrnn-single-0", "--", "--dropout", "x"], "--dropout: invalid float value: 'x'"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    folder: Path, given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = run(folder, *given)
    except SystemExit as ended:  # what a parser does
        status = int(str(ended.code))
    assert status == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert sentence in said[0]
    assert not (folder / "results").exists()


def test_data_that_is_no_folder_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ["fre-qrnn-single-0", "--results", str(tmp_path)]
    assert pronunciation.main([*row, "--data", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: `--data` must be a folder, but 'nowhere' is none.\n"
    assert pronunciation.main(row) == 2
    assert "`--data` must be the folder of the shared task's files" in capsys.readouterr().err


def test_the_recipe_is_the_one_that_the_documents_name() -> None:
    assert ROOT / "scripts" / "configs" / "transduction.yaml" == pronunciation_runs.RECIPE
    assert pytest.approx(0.15) == pronunciation_data.VALID_SHARE + pronunciation_data.TEST_SHARE
