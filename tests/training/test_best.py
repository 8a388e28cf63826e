"""hf_qrnn.training.best: the order of models, and a whole run that chooses by it."""

import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest

from hf_qrnn.data.reading import TextPair
from hf_qrnn.metrics.table import TABLE, VALIDATED
from hf_qrnn.training import checkpoint as checkpoint_module
from hf_qrnn.training.best import (
    METRIC_CHOICES,
    Choice,
    Standing,
    best_standing,
    choose_metric,
    is_same_order,
    order_by,
)
from hf_qrnn.training.checkpoint import CheckpointFolder, read_marker
from hf_qrnn.training.loop import TrainState
from hf_qrnn.training.translation_task import TranslationOptions

ROOT = Path(__file__).parents[2]
SENTENCES = [TextPair("Ein Hund.", "A dog runs fast."), TextPair("Ja.", "Yes.")]
WORDS = [TextPair("chien", "\u0283j\u025b\u0303"), TextPair("eau", "o"), TextPair("a", "a b c d")]

# ------------------------------------------------------------------ the order


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Standing(2.0, 9.0), Standing(1.0, 0.1)),
        (Standing(0.0, 0.5), Standing(0.0, 0.6)),
        (Standing(0.0, 99.0), Standing(0.0)),
        (Standing(-0.1, 1.0), Standing(-0.2, 1.0)),
        (Standing(-50.0, 1.0), Standing(math.nan, 0.1)),
        (Standing(1.0, 5.0), Standing(1.0, math.nan)),
    ],
    ids=["score", "tie", "unknown-loss", "negative", "nan", "nan-loss"],
)
def test_score_orders_and_the_loss_breaks_ties(better: Standing, worse: Standing) -> None:
    assert better.beats(worse)
    assert not worse.beats(better)


def test_of_two_equal_models_the_earlier_stays() -> None:
    assert not Standing(1.0, 2.0).beats(Standing(1.0, 2.0))
    assert Standing(math.nan).beats(None)


def test_every_metric_knows_its_direction() -> None:
    better = {"bleu": 2.0, "chrf": 2.0, "exact_match": 2.0}
    better |= {"char_error_rate": 1.0, "token_error_rate": 1.0, "word_error_rate": 1.0}
    better |= {"loss": 1.0}
    assert set(better) == set(METRIC_CHOICES) - {"auto"}
    for name, value in better.items():
        choice = Choice(name, "", "")
        assert choice.score({name: value}) > choice.score({name: 3.0 - value})
    assert {metric.name for metric in TABLE} - set(better) == {"ter"}


def test_help_and_docs_name_every_metric() -> None:
    named = ", ".join(METRIC_CHOICES[1:])
    (option,) = (own for own in dataclasses.fields(TranslationOptions) if own.name == "metric")
    assert f"{named}, or auto" in option.metadata["help"]
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    table = page.split("| `--metric` | better is |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(METRIC_CHOICES)


# ------------------------------------------------------------------ the decision


@pytest.mark.parametrize(
    ("pairs", "num_shown", "tokenize", "metric"),
    [
        (SENTENCES, 2, "13a", "bleu"),
        (SENTENCES, 0, "13a", "loss"),
        (WORDS, 3, "13a", "chrf"),
        (WORDS, 3, "char", "bleu"),
        ([TextPair("a", "")], 1, "13a", "loss"),
        ([TextPair("a", "\u4eca\u5929\u5929\u6c14\u5f88\u597d")], 1, "13a", "chrf"),
        ([TextPair("a", "\u4eca\u5929\u5929\u6c14\u5f88\u597d")], 1, "zh", "bleu"),
    ],
    ids=["sentences", "nothing", "words", "characters", "empty", "chinese", "chinese-zh"],
)
def test_auto_decides_from_the_references(
    pairs: list[TextPair], num_shown: int, tokenize: str, metric: str
) -> None:
    choice = choose_metric("auto", pairs, num_shown, bleu_tokenize=tokenize)
    assert choice.metric == metric
    assert choice.best_by.split("|")[0] == metric
    assert (f"|tok:{tokenize}|sentences:{num_shown}|" in choice.best_by) == (metric == "bleu")


def test_auto_counts_wrong_lines_where_targets_are_symbols() -> None:
    # Long enough for BLEU, which does not fit: "D AA1 G" for "D AO1 G" is a wrong word.
    pairs = [TextPair("dogs", "D AO1 G Z"), TextPair("cats", "K AE1 T S")]
    assert choose_metric("auto", pairs, 2).metric == "bleu"
    choice = choose_metric("auto", pairs, 2, has_symbols=True)
    assert choice.metric == "word_error_rate"
    assert choice.best_by.startswith("word_error_rate|sentences:2|")
    assert choose_metric("auto", pairs, 0, has_symbols=True).metric == "loss"
    assert choose_metric("chrf", pairs, 2, has_symbols=True).metric == "chrf"
    # A run of before goes on with what it had.
    before = choose_metric("bleu", pairs, 2).best_by
    assert choose_metric("auto", pairs, 2, before=before, has_symbols=True).best_by == before


def test_the_order_names_everything_that_makes_scores_differ() -> None:
    orders = [
        choose_metric(wanted, pairs, shown, bleu_tokenize=tokenize).best_by
        for wanted, pairs, shown, tokenize in (
            ("bleu", SENTENCES, 2, "13a"),
            ("bleu", SENTENCES, 2, "char"),
            ("bleu", SENTENCES, 1, "13a"),
            ("bleu", SENTENCES[::-1], 2, "13a"),
            ("chrf", SENTENCES, 2, "13a"),
        )
    ]
    assert len(set(orders)) == len(orders)
    by_chrf = choose_metric("chrf", SENTENCES, 2, bleu_tokenize="char").best_by
    assert by_chrf == orders[-1]  # chrF has no tokens


def test_a_record_without_the_metric_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="measures, loss, bleu, but is 'x'"):
        Choice("x", "the task's own", "x").score({"loss": 1.0, "bleu": 2.0})


def test_auto_goes_on_with_what_the_checkpoint_says() -> None:
    before = choose_metric("exact_match", SENTENCES, 2).best_by
    assert choose_metric("auto", SENTENCES, 2, before=before).best_by == before
    assert choose_metric("auto", SENTENCES, 0, before=before).metric == "loss"
    assert choose_metric("chrf", SENTENCES, 2, before=before).metric == "chrf"


def test_another_order_forgets_the_best_and_says_so() -> None:
    by_bleu = choose_metric("bleu", SENTENCES, 2)
    state = TrainState(best=0.0, best_loss=2.0, best_by=by_bleu.best_by, since_best=3)
    assert "forgotten" not in order_by(state, by_bleu)
    assert best_standing(state) == Standing(0.0, 2.0)
    by_loss = choose_metric("loss", SENTENCES, 2)
    text = order_by(state, by_loss)
    assert f"chosen by {by_bleu.best_by}, not {by_loss.best_by}: it is forgotten" in text
    assert (best_standing(state), state.best_by, state.since_best) == (None, by_loss.best_by, 0)
    assert "forgotten" not in order_by(state, by_bleu)


@pytest.mark.parametrize(
    ("best", "metric", "is_kept"),
    [(31.5, "bleu", True), (31.5, "loss", False), (-1.5, "loss", True), (-1.5, "bleu", False),
     (0.0, "chrf", False)],
)  # fmt: skip
def test_a_best_without_an_order_was_bleu_or_minus_the_loss(
    best: float, metric: str, is_kept: bool
) -> None:
    state = TrainState(best=best)
    text = order_by(state, choose_metric(metric, SENTENCES, 2))
    assert (state.best == best, "forgotten" not in text) == (is_kept, is_kept)
    by_zh = choose_metric("bleu", SENTENCES, 2, bleu_tokenize="zh").best_by
    assert not is_same_order("", 31.5, by_zh)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"metric": "meteor"}, "`metric` must be one of auto, bleu, .*, loss, but is 'meteor'"),
        ({"metric": "ter"}, "`metric` must be one of auto, bleu, .*, loss, but is 'ter'"),
        (
            {"metric": "chrf", "eval_sentences": 0},
            "`eval_sentences` must not be 0 with the metric 'chrf', which needs translations",
        ),
        ({"bleu_tokenize": "jp"}, "`bleu_tokenize` must be one of none, zh, 13a, .*but is 'jp'"),
        ({"bleu_tokenize": "ja-mecab"}, r"it needs `pip install 'sacrebleu\[ja\]'`\."),
    ],
    ids=["unknown", "ter", "untranslated", "tokens", "package"],
)
def test_options_are_refused_at_the_door(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TranslationOptions(**options)  # type: ignore[arg-type]


# ------------------------------------------------------------------ checkpoints


def save(folder: CheckpointFolder, step: int, **judged: float) -> None:
    folder.save(step, {}, {}, **judged)


def steps(paths: list[Path]) -> list[int]:
    return [int(path.name[5:]) for path in paths]


def test_checkpoints_of_equal_scores_are_ordered_by_the_loss(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_best=2)
    for step, loss in enumerate([3.0, 1.0, 2.0, 1.0], start=1):
        save(folder, step, score=0.0, loss=loss)
    assert steps(folder.best(9)) == [2, 4]
    assert folder.is_among_best(0.0, 0.9)
    assert not folder.is_among_best(0.0, 1.0)
    assert not folder.is_among_best(0.0)


def test_scores_by_another_order_are_no_scores(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=9, keep_best=1)
    folder.best_by = "bleu|tok:13a|sentences:2|data:0"
    save(folder, 1, score=30.0, loss=1.0)
    folder.best_by = "loss|data:0"
    assert folder.best(9) == []
    assert folder.is_among_best(-9.0, 9.0)
    save(folder, 2, score=-9.0, loss=9.0)
    assert steps(folder.best(9)) == [2]
    folder.keep_last = 1
    save(folder, 3)
    assert steps(folder.complete()) == [2, 3]


# ------------------------------------------------------------------ the script


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "train_translation", ROOT / "scripts/train_translation.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags(folder: Path, **changes: object) -> list[str]:
    """Words to words: no target has the four tokens of BLEU."""
    lines = [f"{'ab' * (1 + i % 5)}c" for i in range(60)]
    for name in ("a", "b"):
        (folder / name).write_text("".join(line + "\n" for line in lines))
    options = {
        **{"train_source": folder / "a", "train_target": folder / "b"},
        **{"valid_source": folder / "a", "valid_target": folder / "b"},
        **{"hidden_size": 8, "embedding_size": 8, "encoder_layers": 1, "decoder_layers": 1},
        **{"output_dir": folder / "out", "max_steps": 4, "max_tokens": 64, "save_every": 2},
        **{"eval_every": 2, "log_every": 2, "eval_sentences": 4, "learning_rate": 0.01},
        **{"schedule": "constant", **changes},
    }
    return ["--cpu", *(text for k, v in options.items() for text in (f"--{k}", str(v)))]


def valid_lines(out: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "valid"]


def ended(out: Path) -> dict[str, object]:
    return json.loads((out / "training.json").read_text())  # type: ignore[no-any-return]


def test_a_run_whose_bleu_is_never_positive_keeps_its_best_model(tmp_path: Path) -> None:
    script, out = load_script(), tmp_path / "out"
    longer = {"max_steps": 60, "eval_every": 30, "save_every": 30}
    assert script.main(flags(tmp_path, **longer)) == 0
    assert json.loads((out / "run.json").read_text())["metric"] == "chrf"
    first, second = valid_lines(out)
    assert first["bleu"] == second["bleu"] == 0.0
    assert {metric.name for metric in VALIDATED} | {"loss"} <= set(first)
    assert second["chrf"] > first["chrf"]  # type: ignore[operator]
    assert (first["is_best"], second["is_best"]) == (True, True)
    assert (ended(out)["best"], ended(out)["best_loss"]) == (second["chrf"], second["loss"])
    assert str(ended(out)["best_by"]).startswith("chrf|sentences:4|data:")
    markers = [read_marker(path) for path in CheckpointFolder(out / "checkpoints").complete()]
    assert [marker["loss"] for marker in markers] == [first["loss"], second["loss"]]
    assert {marker["best_by"] for marker in markers} == {ended(out)["best_by"]}
    assert "- the best model of the run by chrF in validation" in (out / "README.md").read_text()


def test_equal_scores_of_a_run_are_ordered_by_the_loss(tmp_path: Path) -> None:
    script, out = load_script(), tmp_path / "out"
    patient = {"patience": 1, "max_steps": 6, "keep_last": 1, "keep_best": 1}
    assert script.main(flags(tmp_path, metric="bleu", **patient)) == 0
    lines = valid_lines(out)
    assert {line["bleu"] for line in lines} == {0.0}
    assert [line["is_best"] for line in lines] == [True, True, True]
    assert ended(out)["finished"] == "budget"
    assert steps(CheckpointFolder(out / "checkpoints").complete()) == [6]


def test_a_resume_with_another_metric_forgets_the_best_and_saves_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script, out = load_script(), tmp_path / "out"
    assert script.main(flags(tmp_path, metric="exact_match")) == 0
    before = ended(out)
    caplog.set_level("INFO")

    def resume(**changes: object) -> tuple[list[object], str, str]:
        caplog.clear()
        assert script.main(flags(tmp_path, resume="auto", **changes)) == 0
        found = [line["is_best"] for line in valid_lines(out)]
        return found, str(ended(out)["best_by"]), caplog.text

    # The default goes on with what was decided, and with the best of it.
    found, best_by, text = resume(max_steps=6)
    assert (best_by, "forgotten" in text) == (before["best_by"], False)
    # Without translations there is the loss alone, which is no exact match.
    weights = (out / "model.safetensors").read_bytes()
    found, best_by, text = resume(max_steps=8, eval_sentences=0)
    assert (found[-1], best_by.split("|")[0]) == (True, "loss")
    assert text.count("it is forgotten") == 1
    assert (out / "model.safetensors").read_bytes() != weights
    found, best_by, text = resume(max_steps=10, metric="char_error_rate", average="best")
    assert (found[-1], best_by.split("|")[0]) == (True, "char_error_rate")
    assert text.count("it is forgotten") == 1
    # Nothing is left to train, and no checkpoint has a score by this metric to average: what
    # there is becomes the best of this metric, which run.json names.
    found, best_by, text = resume(max_steps=10, metric="token_error_rate", average="best")
    assert (found[-1], best_by.split("|")[0]) == (True, "token_error_rate")
    assert ended(out)["best"] == -valid_lines(out)[-1]["token_error_rate"]  # type: ignore[operator]


def test_a_finished_run_of_another_folder_leaves_a_model_here(tmp_path: Path) -> None:
    script, there, here = load_script(), tmp_path / "there", tmp_path / "here"
    test = {"test_source": tmp_path / "a", "test_target": tmp_path / "b", "num_beams": 1}
    assert script.main(flags(tmp_path, output_dir=there, max_steps=2)) == 0
    assert script.main(flags(tmp_path, output_dir=here, resume=there, max_steps=2, **test)) == 0
    assert (here / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()
    assert (here / "test.json").is_file()


def make_older(out: Path) -> None:
    """Checkpoints as they were before there were metrics to choose from."""
    for path in CheckpointFolder(out / "checkpoints").complete():
        marker = json.loads((path / "complete.json").read_text())
        state = json.loads((path / "state.json").read_text())
        for name in ("best_by", "best_loss"):
            state["train"].pop(name, None)
        (path / "state.json").write_text(json.dumps(state))
        marker["files"]["state.json"] = checkpoint_module._describe(path / "state.json")
        for name in ("best_by", "loss"):
            marker.pop(name, None)
        (path / "complete.json").write_text(json.dumps(marker))


def test_older_checkpoints_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script, out = load_script(), tmp_path / "out"
    assert script.main(flags(tmp_path, eval_sentences=0)) == 0
    best = json.loads((out / "training.json").read_text())["best"]
    assert best < 0
    make_older(out)
    caplog.set_level("INFO")
    more = flags(tmp_path, eval_sentences=0, resume="auto", learning_rate=0.01, max_steps=6)
    assert script.main(more) == 0
    assert "forgotten" not in caplog.text
    assert ended(out)["best"] >= best  # type: ignore[operator]
    make_older(out)
    assert script.main(flags(tmp_path, resume="auto", max_steps=8)) == 0
    assert "the best so far was chosen by loss, not chrf|sentences:4|" in caplog.text
    assert valid_lines(out)[-1]["is_best"] is True


def test_the_script_refuses_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script()
    assert script.main(flags(tmp_path, metric="chrf", eval_sentences=0)) == 2
    assert "error: `--eval_sentences` must not be 0 with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_script_splits_as_it_is_told(tmp_path: Path) -> None:
    script, out = load_script(), tmp_path / "out"
    test = {"test_source": tmp_path / "a", "test_target": tmp_path / "b", "num_beams": 1}
    assert script.main(flags(tmp_path, bleu_tokenize="char", max_steps=2, **test)) == 0
    assert json.loads((out / "run.json").read_text())["metric"] == "bleu"
    for record in (valid_lines(out)[0], json.loads((out / "test.json").read_text())):
        assert "|tok:char|" in str(record["bleu_signature"])
