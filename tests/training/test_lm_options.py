"""Options of the language model's script: data sets, blanks, penalties, samples, SGD's resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import CLIENT_WARNING
from text_runs import ended, flags
from training_script import status_of

from hf_qrnn.data.batching import Batch
from hf_qrnn.data.tokenization import train_word_tokenizer
from hf_qrnn.training.language_model_task import LanguageModelTask, lines_of
from hf_qrnn.training.loop import LoopOptions
from hf_qrnn.training.options import RunOptions, parse_options
from hf_qrnn.training.processes import Processes
from hf_qrnn.training.run import run_task


def loaded(folder: Path, *switches: str, **changes: object) -> LanguageModelTask:
    """Make the task of a command line, with its data and model."""
    kinds = (*LanguageModelTask.kinds, LoopOptions, RunOptions)
    argv = flags(folder, *switches, **changes)
    *given, loop, options = parse_options(kinds, argv, without=LanguageModelTask.without)
    task = LanguageModelTask(given, loop, options)
    torch.manual_seed(0)
    task.load(Alone())
    return task


class Alone(Processes):
    """One process, without Accelerate."""

    def __init__(self) -> None:
        self.count, self.rank, self.is_main = 1, 0, True

    def together(self, work: Any) -> Any:
        return work()


# ------------------------------------------------------------------ texts


def test_blanks_around_lines_are_left_out(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / name).write_text(" the <unk> sees \n\n a dog \n")
    kept, bare = (loaded(tmp_path, *x) for x in ((), ("--strip_lines",)))
    assert (kept.train.num_chars, bare.train.num_chars) == (26, 22)
    assert (len(kept.train.tokens), len(bare.train.tokens)) == (26, 22)
    # By characters `<unk>` is five of them.
    assert bare.tokenizer.decode(bare.train.tokens[:15], skip_special_tokens=True) == (
        "the <unk> sees"
    )


def test_bare_vocabulary_has_words_and_the_end_alone(tmp_path: Path) -> None:
    tokenizer = train_word_tokenizer(["the cat <unk> the"], bare=True)
    assert tokenizer.get_vocab() == {"</s>": 0, "<unk>": 1, "the": 2, "cat": 3}
    assert tokenizer("the bird <unk>")["input_ids"] == [2, 1, 1, 0]
    assert (tokenizer.pad_token, tokenizer.bos_token) == (None, None)
    task = loaded(tmp_path, "--bare_vocabulary", tokenizer="word")
    # Four words, <unk> and the end.
    assert task.model.config.vocab_size == 6
    assert task.model.config.pad_token_id is None


def test_data_set_has_the_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        rows = [{"story": "a dog\nsees\n"}, {"story": "the cat"}]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = {"dataset_name": data, "text_column": "story"}
    found = flags(tmp_path, **argv)
    for name in ("--train_file", "--valid_file"):
        at = found.index(name)
        del found[at : at + 2]
    kinds = (*LanguageModelTask.kinds, LoopOptions, RunOptions)
    *given, loop, options = parse_options(kinds, found, without=LanguageModelTask.without)
    task = LanguageModelTask(given, loop, options)
    task.load(Alone())
    assert task.train.num_chars == len("a dog\nsees\nthe cat\n") == len(task.valid.tokens)
    assert not len(task.test.tokens)
    found[found.index("--text_column") + 1] = "text"
    assert status_of(LanguageModelTask, found) == 2
    assert "`--text_column` must be a column of texts, but is 'text'" in capsys.readouterr().err
    (data / "validation.jsonl").unlink()
    assert status_of(LanguageModelTask, found[:-2] + ["--text_column", "story"]) == 2
    assert "`--dataset_name` must have the split 'validation'" in capsys.readouterr().err


# ------------------------------------------------------------------ penalties


def test_penalties_are_added_to_the_loss_and_not_to_the_log(tmp_path: Path) -> None:
    plain = loaded(tmp_path, dropout=0.0)
    task = loaded(tmp_path, dropout=0.0, activation_penalty=2.0, change_penalty=1.0)
    ids = torch.randint(4, 8, (3, 9))
    batch = Batch({"input_ids": ids[:, :-1], "labels": ids[:, 1:]}, False, 24, 24, (0,))
    expected, output = (x.forward(x.model.train(), batch) for x in (plain, task))
    assert "unsmoothed_loss" not in expected
    assert output.unsmoothed_loss.item() == pytest.approx(expected.loss.item())
    h = task.model.model(ids[:, :-1]).last_hidden_state
    mean, change = h.square().mean(), (h[:, 1:] - h[:, :-1]).square().mean()
    more = 24 * (2.0 * mean + 1.0 * change)
    assert output.loss.item() == pytest.approx((expected.loss + more).item(), rel=1e-5)
    # Both reach the weights.
    names = ("activation_penalty", "change_penalty")
    assert {name: task.identity().get(name) for name in names} == dict(
        zip(names, (2.0, 1.0), strict=True)
    )
    assert not any(name in plain.identity() for name in names)


# ------------------------------------------------------------------ runs


def test_sgd_resumes_to_the_same_weights(tmp_path: Path) -> None:
    options = {
        "optimizer": "sgd", "loss_mean": "rows", "learning_rate": 0.5, "schedule": "epochs",
        "constant_epochs": 1, "weight_decay": 1e-3, "decayed_weights": "all", "zoneout": 0.1,
        "max_grad_norm": 10, "activation_penalty": 0.1, "change_penalty": 0.1, "max_steps": 24,
    }  # fmt: skip
    argv = flags(tmp_path, "--locked_dropout", **options)
    assert run_task(LanguageModelTask, argv) == 0
    out = tmp_path / "out"
    whole = ended(out)
    assert whole["epoch"] > 1
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = {x["epoch"]: x["learning_rate"] for x in records if x["kind"] == "train"}
    assert [rates[0], rates[1]] == [0.5, 0.5 * 0.95]
    shutil.rmtree(out / "checkpoints/step-00000024")
    again = flags(tmp_path, "--locked_dropout", **options, resume="auto")
    assert run_task(LanguageModelTask, again) == 0
    assert ended(out)["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_best_model_writes_at_the_end_and_its_card_shows_it(tmp_path: Path) -> None:
    argv = flags(tmp_path, "--bare_vocabulary", tokenizer="word", max_steps=8, sample_tokens=50)
    assert run_task(LanguageModelTask, argv) == 0
    lines = (tmp_path / "out/samples.txt").read_text().splitlines()
    words = {word for line in lines for word in line.split()}
    assert words <= {"the", "cat", "dog", "sees", "<unk>"}
    # 50 tokens, of which every line's end is one; the last line may lack its end.
    assert sum(len(line.split()) + 1 for line in lines) >= 50
    card = (tmp_path / "out/README.md").read_text()
    assert "## What it writes\n" in card
    assert f"\n    {lines[0]}\n" in card
    assert run_task(LanguageModelTask, [*argv, "--overwrite_output_dir"]) == 0
    assert (tmp_path / "out/samples.txt").read_text().splitlines() == lines
    none = flags(tmp_path, sample_tokens=0, max_steps=1, output_dir=tmp_path / "none")
    assert run_task(LanguageModelTask, none) == 0
    assert not (tmp_path / "none/samples.txt").exists()


def test_samples_are_one_text(tmp_path: Path) -> None:
    task = loaded(tmp_path, sample_tokens=31, sample_temperature=0.0)
    model = task.model.eval()
    # Likeliest tokens need no chance: what is written in parts is what is written at once.
    whole = model.generate(
        torch.tensor([[1]]), do_sample=False, max_new_tokens=31, eos_token_id=-1
    )[0, 1:]  # type: ignore[operator]
    assert task.samples(model) == lines_of(task.tokenizer, whole)
    assert lines_of(task.tokenizer, torch.tensor([1, 4, 1, 5])) == ["", " ", "a"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"change_penalty": -1}, "`--change_penalty` must be at least 0, but is -1.0."),
        ({"sample_tokens": -1}, "`--sample_tokens` must be at least 0, but is -1."),
        ({"loss_mean": "all"}, "`--loss_mean` must be one of tokens, rows, but is 'all'."),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], sentence: str
) -> None:
    assert status_of(LanguageModelTask, flags(tmp_path, **changes)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
