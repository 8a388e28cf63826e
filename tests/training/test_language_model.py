"""The language model's script: rows and their state, exact resume, what the end of a run leaves."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_fixtures import CLIENT_WARNING, REPO
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard
from text_runs import ended, flags
from training_script import ROOT, TORCHRUN, kill_at_a_checkpoint, status_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_qrnn import QRNNConfig, QRNNForCausalLM
from hf_qrnn.data.tokenization import train_word_tokenizer
from hf_qrnn.training.checkpoint import read_checkpoint
from hf_qrnn.training.language_model_task import LanguageModelTask
from hf_qrnn.training.run import run_task
from hf_qrnn.training.text_stream import RowBatches, total_nats

SCRIPT = ROOT / "scripts/train_language_model.py"


# ------------------------------------------------------------------ rows


def test_rows_are_the_stream_in_order() -> None:
    # 10 tokens in 3 rows of 3 steps, two of them in a batch.
    rows = RowBatches(torch.arange(10), num_rows=3, length=2)
    batches = [(b.inputs["input_ids"].tolist(), b.inputs["labels"].tolist()) for b in rows]
    assert batches == [
        ([[0, 1], [3, 4], [6, 7]], [[1, 2], [4, 5], [7, 8]]),
        ([[2], [5], [8]], [[3], [6], [9]]),
    ]
    assert [b.num_target_tokens for b in rows] == [6, 3]
    rows.set_epoch(1, start=1)
    assert (len(rows), [b.indices for b in rows]) == (1, [(1,)])


def test_processes_share_the_rows() -> None:
    whole = next(iter(RowBatches(torch.arange(40), num_rows=4, length=3))).inputs["input_ids"]
    for rank in (0, 1):
        rows = RowBatches(torch.arange(40), num_rows=4, length=3, world_size=2, rank=rank)
        assert torch.equal(next(iter(rows)).inputs["input_ids"], whole[rank::2])
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the 3 processes"):
        RowBatches(torch.arange(40), num_rows=4, length=3, world_size=3)
    with pytest.raises(ValueError, match="`batch_size` must be less than the 4 tokens"):
        RowBatches(torch.arange(4), num_rows=4, length=3)


def test_loss_of_a_stream_is_that_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = QRNNConfig(vocab_size=9, embedding_size=6, hidden_size=8, encoder_layers=1,
                        decoder_layers=2, is_encoder_decoder=False)  # fmt: skip
    model = QRNNForCausalLM(config).eval()
    tokens = torch.randint(4, 9, (50,))
    inputs = torch.cat([torch.tensor([1]), tokens])[None]
    with torch.no_grad():
        shares = model(inputs).logits[0, :-1].log_softmax(-1)
    expected = -float(shares.gather(1, tokens[:, None]).sum())
    for steps in (1024, 7, 1):
        monkeypatch.setattr("hf_qrnn.training.text_stream.STEPS", steps)
        assert total_nats(model, model, tokens) == pytest.approx(expected, rel=1e-5)


def test_word_tokenizer_counts_words() -> None:
    tokenizer = train_word_tokenizer(["the cat <unk> the", " a dog "], min_count=1)
    assert tokenizer.convert_ids_to_tokens(list(range(4, 8))) == ["the", "a", "cat", "dog"]
    assert tokenizer(" the bird <unk> ")["input_ids"] == [4, 2, 2, 1]
    assert tokenizer.decode([4, 6, 1], skip_special_tokens=True) == "the cat"
    with pytest.raises(ValueError, match="`min_count` must leave a word, but is 3"):
        train_word_tokenizer(["the cat the"], min_count=3)


# ------------------------------------------------------------------ runs


def test_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    assert run_task(LanguageModelTask, flags(tmp_path, max_steps=13)) == 0
    whole = ended(tmp_path / "out")
    # Updates follow each other within an epoch: the state of the middle of one is needed.
    assert whole["epoch"] == 0 or whole["batch"] != 0
    argv = flags(tmp_path, max_steps=13, output_dir=tmp_path / "cut")
    kill_at_a_checkpoint(argv, tmp_path / "cut", SCRIPT)
    assert run_task(LanguageModelTask, [*argv, "--resume", "auto"]) == 0
    again = ended(tmp_path / "cut")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["best"] == whole["best"]


def test_resume_without_the_rows_state_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test above could not see a lost state if it changed nothing.
    assert run_task(LanguageModelTask, flags(tmp_path)) == 0
    whole = ended(tmp_path / "out")
    path = sorted((tmp_path / "out/checkpoints").glob("step-*"))[-2]
    carried = read_checkpoint(path).tensors["carried"]
    assert {name: tuple(x.shape) for name, x in carried.items()} == {
        "0/0.inputs": (4, 1, 8), "0/0.c": (4, 8), "0/1.inputs": (4, 1, 8), "0/1.c": (4, 8),
    }  # fmt: skip
    for lost in (False, True):
        if lost:
            monkeypatch.setattr(LanguageModelTask, "load_state_dict", lambda *_: None)
        argv = flags(tmp_path, output_dir=tmp_path / f"lost-{lost}", resume=path)
        assert run_task(LanguageModelTask, argv) == 0
        same = ended(tmp_path / f"lost-{lost}")["weights_sha256"] == whole["weights_sha256"]
        assert same is not lost


def test_two_processes_share_a_run_and_resume_it_exactly(tmp_path: Path) -> None:
    options = {"dropout": 0.0, "max_steps": 6, "eval_every": 3}
    assert run_task(LanguageModelTask, flags(tmp_path, **options)) == 0

    def two(folder: Path, *switches: str) -> None:
        argv = flags(tmp_path, *switches, output_dir=folder, **options)
        done = subprocess.run(
            [sys.executable, *TORCHRUN, str(SCRIPT), *argv], capture_output=True, text=True,
            check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def losses(folder: Path) -> list[float]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    two(tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "out"), rel=1e-4)
    shutil.copytree(tmp_path / "two", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/step-00000006")
    two(tmp_path / "again", "--resume", "auto")
    hashes = [ended(tmp_path / name)["weights_sha256"] for name in ("two", "again")]
    assert hashes[0] == hashes[1]


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_run_is_told_as_a_language_models(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = flags(
        tmp_path, "--push_to_hub", tokenizer="word", test_file=tmp_path / "test",
        hub_model_id=REPO, output_dir="out", max_steps=8,
    )  # fmt: skip
    assert run_task(LanguageModelTask, argv) == 0
    out = tmp_path / "out"
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    valid = [record for record in records if record["kind"] == "valid"]
    characters = len((tmp_path / "valid").read_text())
    for record in valid:
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))
        # 8 lines of four words and an end.
        bits = record["loss"] * 40 / math.log(2) / characters
        assert record["bits_per_character"] == pytest.approx(bits)
    assert ended(out)["best"] == -min(record["perplexity"] for record in valid)
    run = json.loads((out / "run.json").read_text())
    assert (run["metric"], run["data"]) == ("perplexity", {"train": 300, "valid": 40, "test": 40})
    assert "encoder_layers" not in run["options"]
    card = (out / "README.md").read_text()
    data = ModelCard(card).data
    assert (data.pipeline_tag, data.metrics) == (
        "text-generation", ["perplexity", "bits_per_character"],
    )  # fmt: skip
    test = json.loads((out / "test.json").read_text())
    for part in (
        "that continues texts",
        f"| 40 tokens | perplexity | {test['perplexity']:.2f} |",
        f"| 40 tokens | bits per character | {test['bits_per_character']:.2f} |",
        "| split | tokens |\n|---|---|\n| train | 300 |",
        "| update | minutes | nats per token | perplexity | bits per character |",
        "- the best model of the run by perplexity in validation",
    ):
        assert part in card
    for absent in ("translat", "source", "BLEU", "beams", "encoder_layers", "attention"):
        assert absent not in card.split("## Reproduce")[0]
    assert hub.files(REPO)["README.md"].decode().startswith("---\n")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    exec(code.replace(f'name = "{REPO}"', 'name = "out"'), {})
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert isinstance(model, QRNNForCausalLM)
    assert len(tokenizer) == model.config.vocab_size == 8


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"valid_file": "nowhere"}, "`--valid_file` must be an existing file"),
        ({"batch_size": 0}, "`--batch_size` must be at least 1, but is 0."),
        ({"max_tokens": 5}, "unrecognized arguments: --max_tokens 5"),
        ({"init_from": "x"}, "unrecognized arguments: --init_from x"),
    ],
)
def test_mistakes_are_one_sentence_and_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], sentence: str
) -> None:
    assert status_of(LanguageModelTask, flags(tmp_path, **changes)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
