"""The reproduction's rows, what a run of one leaves, its reports, and the page made of them."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import reproduce
import reproduction_runs
from reproduction_rows import (
    CARDS,
    FILES,
    RESULTS,
    TABLE,
    Row,
    listing,
    markdown,
    parse_row,
    read_results,
)
from reproduction_runs import Setting, epochs_of, make_record, run_row, training_flags
from results import Record
from stored_rows import RunFailedError
from text_runs import flags

TINY = tuple(
    word
    for name, value in {
        "hidden_size": 8, "embedding_size": 8, "decoder_layers": 2, "max_steps": 6,
        "batch_size": 4, "sequence_length": 10, "eval_every": 3, "log_every": 1,
        "sample_tokens": 8, "mixed_precision": "no", "dropout": 0.1,
    }.items()
    for word in (f"--{name}", str(value))
)  # fmt: skip
WORDS = parse_row("ptb-word-paper")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write small texts under the names of the Penn Treebank's files."""
    flags(tmp_path)
    folder = tmp_path / "data/lm_ptb"
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        text = (tmp_path / split).read_bytes()
        (folder / FILES["lm_ptb"][f"{split}_file"]).write_bytes(lzma.compress(text))
    return folder.parent


def setting(tmp_path: Path, data: Path, **changes: Any) -> Setting:
    own = {"out": tmp_path / "runs", "results": tmp_path / "results", "cards": tmp_path / "cards"}
    return Setting(**{**own, "data": data, "flags": TINY, **changes})


def result(row: Row, **more: Any) -> Record:
    hardware = {"cpu": "a CPU", "threads": 1}
    return {
        "row": row.name, "command": f"run {row.name}", "date": "2026-12-01", "hardware": hardware,
        "precision": "no", "seed": row.seed, "parameters": 17_729_040, "updates": 886,
        "epochs": 2.0, "seconds": 600.0, row.metric: 0.5, **more,
    }  # fmt: skip


# ------------------------------------------------------------------ rows


def test_table_has_every_row_that_is_asked_for() -> None:
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names)
    assert [parse_row(name) for name in names] == list(TABLE)
    models = {"ptb-word-paper-zoneout", "ptb-word-paper", "ptb-word-modern", "ptb-char"}
    models |= {"imdb-paper", "imdb-paper-k4", "imdb-modern", "de-en", "multi30k-distilled"}
    models |= {"multi30k", "multi30k-1", "multi30k-2"}
    assert models <= set(names)
    for name in ("ptb-word-paper", "ptb-word-modern", "ptb-char", "imdb-paper", "imdb-modern"):
        assert {f"{name}-lstm-minutes", f"{name}-lstm-updates"} <= set(names)
    for arch in ("lstm", "transformer"):
        assert {f"multi30k-{arch}-minutes", f"multi30k-{arch}-updates"} <= set(names)
    for row in TABLE:
        assert row.data in FILES
        assert row.has_card is (row.like == "")
        assert all(teacher in names for teacher in row.teachers)
    with pytest.raises(ValueError, match="a row must be one of ptb-word-paper-zoneout"):
        parse_row("ptb-word-paper-gru-minutes")


def test_two_rows_differ_by_zoneout_alone() -> None:
    # The preset has the zoneout.
    assert (WORDS.config, WORDS.flags) == ("lm_ptb_paper", ("--zoneout", "0"))
    other = parse_row("ptb-word-paper-zoneout")
    assert (other.config, other.flags) == ("lm_ptb_paper", ())


# ------------------------------------------------------------------ runs


def test_row_and_its_controls_are_one_command_each(tmp_path: Path, data: Path) -> None:
    own = setting(tmp_path, data)
    argv = [f"--{x}={getattr(own, x)}" for x in ("out", "data", "results", "cards")]
    assert reproduce.main(["ptb-word-paper", *argv, "--", *TINY]) == 0
    (found,) = read_results(own.results).values()
    assert (found["row"], found["updates"], found["seed"]) == ("ptb-word-paper", 6, 0)
    test = json.loads((own.out / "ptb-word-paper/test.json").read_text())
    assert found["perplexity"] == test["perplexity"]
    assert found["command"] == (
        "python benchmarks/reproduce.py ptb-word-paper --data data -- " + " ".join(TINY)
    )
    run = json.loads((own.out / "ptb-word-paper/run.json").read_text())
    assert run["options"]["zoneout"] == 0.0
    card = tmp_path / "cards/ptb-word-paper"
    assert "## What it writes" in (card / "README.md").read_text()
    assert (card / "test.json").is_file()
    assert found["epochs"] is None  # 300 tokens in 4 rows of 10 steps: 8 batches an epoch
    control = parse_row("ptb-word-paper-lstm-updates")
    tiny = TINY[: TINY.index("--max_steps")] + TINY[TINY.index("--max_steps") + 2 :]
    record = run_row(control, setting(tmp_path, data, flags=tiny))
    assert record["updates"] == found["updates"]
    assert record["parameters"] == pytest.approx(found["parameters"], rel=0.2)
    assert not (tmp_path / "cards" / control.name).exists()
    same = training_flags(
        parse_row("ptb-word-paper-lstm-minutes"), tmp_path, setting(tmp_path, data)
    )
    assert float(same[same.index("--max_minutes") + 1]) == pytest.approx(
        found["seconds"] / 60, rel=1e-4
    )


@pytest.mark.parametrize(
    ("epoch", "batch", "step", "expected"),
    [(0, 8, 8, None), (1, 8, 16, 2.0), (2, 4, 20, 2.5), (1, 1, 9, 1.12)],
)
def test_epochs_are_those_begun(epoch: int, batch: int, step: int, expected: float | None) -> None:
    assert epochs_of({"epoch": epoch, "batch": batch, "step": step}) == expected


def test_interrupted_row_goes_on(tmp_path: Path, data: Path) -> None:
    half = (*TINY[: TINY.index("--max_steps")], "--save_every", "2", *TINY[8:])
    run_row(WORDS, setting(tmp_path, data, flags=(*half, "--max_steps", "3")))
    record = run_row(WORDS, setting(tmp_path, data, flags=(*half, "--max_steps", "6")))
    lines = (tmp_path / "runs/ptb-word-paper/metrics.jsonl").read_text().splitlines()
    steps = [x["step"] for x in map(json.loads, lines) if x["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert record["updates"] == 6


def test_minutes_spread_a_decay_and_leave_epochs_theirs(tmp_path: Path, data: Path) -> None:
    own = setting(tmp_path, data, minutes=5)
    paper, modern = (
        training_flags(parse_row(name), tmp_path, own) for name in ("ptb-word-paper", "ptb-char")
    )
    assert paper[paper.index("--max_minutes") + 1] == "5"
    assert "--epochs" not in paper
    assert modern[modern.index("--epochs") + 1] == "1000000"
    assert "--max_minutes" not in training_flags(WORDS, tmp_path, setting(tmp_path, data))


def test_teachers_translate_before_a_student_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, folder = parse_row("multi30k-distilled"), tmp_path / "data/nmt_multi30k"
    folder.mkdir(parents=True)
    for name in FILES["nmt_multi30k"].values():
        (folder / name).write_bytes(b"")
    own = setting(tmp_path, folder.parent)
    with pytest.raises(ValueError, match="multi30k' must be trained before multi30k-distilled"):
        training_flags(row, tmp_path, own)
    for name in row.teachers:
        (own.out / name).mkdir(parents=True)
        (own.out / name / "training.json").write_text("{}")
    ran: list[list[str]] = []
    monkeypatch.setattr(reproduction_runs, "run_command", lambda argv: ran.append(argv) or 0)
    found = training_flags(row, tmp_path, own)
    target = str(own.out / "data/multi30k-distilled.tsv")
    assert found[found.index("--distilled_file") + 1] == target
    assert ran[0][:5] == ["distill", *(str(own.out / name) for name in row.teachers)]
    assert ran[0][-2:] == ["-o", target]


def test_failures_say_why(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [f"--results={tmp_path / 'results'}", f"--out={tmp_path / 'runs'}", f"--data={data}"]
    for argv, sentence in (
        (["nothing"], "error: a row must be one of"),
        ([], "error: a ROW, --all, --list, --table or --write must be given"),
        (["ptb-char", "--minutes", "-1"], "error: `--minutes` must be at least 0, but is -1.0."),
        (["ptb-char", "--threads", "0"], "error: `--threads` must be at least 1, but is 0."),
        (["imdb-paper"], "error: `--data` must hold sentiment_imdb/train.jsonl.xz, but"),
        (["ptb-char-lstm-updates"], "error: ptb-char must have a result before ptb-char-lstm"),
    ):
        assert reproduce.main([*argv, *common]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RunFailedError):
        run_row(WORDS, setting(tmp_path, data, flags=(*TINY, "--learning_rate", "-1")))
    (tmp_path / "test.json").write_text("{}")
    for name in ("run", "training"):
        (tmp_path / f"{name}.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold perplexity"):
        make_record(WORDS, tmp_path, setting(tmp_path, data))


# ------------------------------------------------------------------ reports


def test_list_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, cards = tmp_path / "results", tmp_path / "cards"
    argv = ["--list", f"--results={results}", f"--cards={cards}"]
    assert reproduce.main(argv) == 1
    assert f"0 of {len(TABLE)} rows have all" in capsys.readouterr().out
    for row in TABLE:
        for folder, name, text in (
            (results, f"{row.name}.json", json.dumps(result(row))),
            (cards, f"{row.name}/README.md", "card"),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    assert reproduce.main(argv) == 0
    shown = capsys.readouterr().out
    line = next(x for x in shown.splitlines() if x.startswith("ptb-word-paper ("))
    assert line == (
        "ptb-word-paper (language_model): perplexity 0.50; 17,729,040 parameters, 886 updates; "
        "600 s, 2026-12-01; lstm at equal minutes 0.50; lstm at equal updates 0.50"
    )
    assert "    run ptb-word-paper\n" in shown
    (cards / "imdb-paper/README.md").unlink()
    assert reproduce.main(argv) == 1
    assert "imdb-paper (classifier): MISSING: CARD; accuracy, % 50.00" in capsys.readouterr().out
    # A control has no card.
    (results / "ptb-char-lstm-minutes.json").unlink()
    text, missing = listing(read_results(results), lambda row: f"do {row.name}", cards)
    assert missing == 2
    assert "MISSING: RESULT; bits per character -\n    do ptb-char-lstm-minutes" in text


def test_tables_have_every_row_and_note() -> None:
    found = {
        row.name: result(row, bleu_signature="nrefs:1", accuracy_confidence={"margin": 0.27})
        for row in TABLE[:2] + (parse_row("imdb-paper"),)
    }
    text = markdown(found)
    assert "| `ptb-word-paper` | 0.50 | 79.9; LSTM 82.0 (1611.01576) | 17,729,040 | 886 |" in text
    assert "| lstm, equal updates | - |  | - | - | - | - | - |" in text
    assert "| `imdb-paper` | 50.00 +- 0.27 |" in text
    assert "- `ptb-word-paper`: `run ptb-word-paper`; seed 0; a CPU, 1 thread(s), no;" in text
    assert text.count("\n### ") == len({row.table for row in TABLE}) - 1


def test_page_has_the_tables_of_the_stored_results(tmp_path: Path) -> None:
    page = reproduce.PAGE.read_text(encoding="utf-8")
    assert reproduce.between(page) == markdown(read_results(RESULTS)), (
        "run python benchmarks/reproduce.py --write"
    )
    copy = tmp_path / "page.md"
    copy.write_text(page)
    reproduce.write_page("new", copy)
    assert reproduce.between(copy.read_text()) == "new"
    assert len(copy.read_text()) < len(page)


def test_stored_results_have_their_cards() -> None:
    for name in read_results(RESULTS):
        row = parse_row(name)
        assert not row.has_card or (CARDS / name / "README.md").is_file()
