"""Controls of classification: padding, equal sizes, the QRNN's own path, exact resume."""

import inspect
import json
import lzma
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_controls import (
    ControlTask,
    LSTMForSequenceClassification,
    LSTMTask,
    TransformerForSequenceClassification,
    TransformerTask,
)
from controls import load_script, run_control
from equal_sizes import count_parameters
from reproduction_rows import parse_row
from reproduction_runs import CONFIGS, Setting, run_row
from stored_rows import write_result
from text_runs import ended
from yaml import safe_load

from hf_qrnn import QRNNConfig, QRNNForSequenceClassification
from hf_qrnn.training.classification_task import ClassificationTask

ARCHITECTURES = {
    "lstm": LSTMForSequenceClassification,
    "transformer": TransformerForSequenceClassification,
}


def qrnn(**changes: Any) -> QRNNForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "embedding_size": 24, "hidden_size": 32, "encoder_layers": 2}
    own = {"is_encoder_decoder": False, "reverse_source": False, "num_labels": 3}
    return QRNNForSequenceClassification(QRNNConfig(**{**sizes, **own, **changes}))


def flags(folder: Path, **changes: Any) -> list[str]:
    """Write small labelled texts to `folder`, and return a command line."""
    draw = random.Random(0)
    for name, number in (("train", 40), ("valid", 8), ("test", 8)):
        texts = [" ".join(draw.choices("abc", k=draw.randint(1, 9))) for _ in range(number)]
        lines = [json.dumps({"text": text, "label": int("a" in text)}) for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    options = {
        **{f"{name}_file": folder / f"{name}.jsonl" for name in ("train", "valid", "test")},
        **{"hidden_size": 16, "embedding_size": 8, "encoder_layers": 2, "dropout": 0.2},
        **{"encoder_bidirectional": "true", "classifier_pooling": "mean_max"},
        **{"output_dir": folder / "out", "max_steps": 6, "max_tokens": 100, "num_threads": 1},
        **{"save_every": 2, "eval_every": 3, "log_every": 1, "word_dropout": 0.1, **changes},
    }
    return ["--cpu", *(text for k, v in options.items() for text in (f"--{k}", str(v)))]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("pooling", ["last", "mean_max"])
@pytest.mark.parametrize("both", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_padding_changes_nothing(arch: str, pooling: str, both: bool, reverse: bool) -> None:
    options = {"encoder_bidirectional": both, "reverse_source": reverse}
    model: Any = ARCHITECTURES[arch].like(qrnn(classifier_pooling=pooling, **options)).eval()
    rows = [torch.randint(4, 50, (length,)) for length in (9, 1, 6)]
    ids, mask = torch.zeros(2, 4, 11, dtype=torch.long), torch.zeros(2, 4, 11, dtype=torch.long)
    for index, row in enumerate(rows):  # the last row has pads alone
        for side, place in enumerate((slice(0, len(row)), slice(11 - len(row), 11))):
            ids[side, index, place], mask[side, index, place] = row, 1
    labels = torch.tensor([0, 2, 1])
    grads = []
    for side in range(2):
        model.zero_grad()
        logits = model(ids[side], attention_mask=mask[side]).logits
        assert logits.isfinite().all()
        torch.nn.functional.cross_entropy(logits[:3], labels, reduction="sum").backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        for index, row in enumerate(rows):
            torch.testing.assert_close(logits[index], model(row[None]).logits[0], rtol=0, atol=1e-5)
    model.zero_grad()
    for row, label in zip(rows, labels, strict=True):
        model(row[None], labels=label[None]).loss.backward()
    alone = [p.grad for p in model.parameters()]
    for found in grads:
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("both", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_is_torchs_own(both: bool, layers: int) -> None:
    model = LSTMForSequenceClassification.like(
        qrnn(encoder_bidirectional=both, encoder_layers=layers)
    ).eval()
    encoder: Any = model.model.encoder
    x = torch.randn(3, 7, 24)
    if both and layers == 1:
        units = model.config.hidden_size // 2
        whole = torch.nn.LSTM(24, units, batch_first=True, bidirectional=True)
        for stack, tail in zip(encoder.stacks, ("", "_reverse"), strict=True):
            whole.load_state_dict({f"{k}{tail}": v for k, v in stack.state_dict().items()}, False)
        wanted = whole(x)[0]
    else:
        wanted = torch.cat(
            [
                stack(x.flip(1))[0].flip(1) if way else stack(x)[0]
                for stack, way in zip(encoder.stacks, encoder.reversed, strict=True)
            ],
            dim=-1,
        )
    torch.testing.assert_close(encoder(x).last_hidden_state, wanted, rtol=0, atol=1e-6)
    assert [stack.num_layers for stack in encoder.stacks] == [layers] * (1 + both)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_way_does_not_look_ahead(arch: str) -> None:
    for both in (False, True):
        model: Any = ARCHITECTURES[arch].like(qrnn(encoder_bidirectional=both)).eval()
        x = torch.randn(2, 8, 24)
        changed = x.clone()
        changed[:, 5] += 1
        one, two = (model.model.encoder(y).last_hidden_state for y in (x, changed))
        assert torch.allclose(one[:, :5], two[:, :5], rtol=0, atol=1e-6) is not both
        assert not torch.allclose(one[:, 6:], two[:, 6:])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_control_of_a_preset_has_as_many_parameters(arch: str, preset: str) -> None:
    given = safe_load((CONFIGS / f"sentiment_imdb_{preset}.yaml").read_text())
    fields = {name: x for name, x in given.items() if name in QRNNConfig().to_dict()}
    with torch.device("meta"):
        like = qrnn(**fields, vocab_size=1000)  # the stack weighs more than with all words
        model = ARCHITECTURES[arch].like(like)
    assert count_parameters(model) == pytest.approx(count_parameters(like), rel=0.01)
    assert count_parameters(model.model.encoder) == pytest.approx(
        count_parameters(like.model.encoder), rel=0.01
    )
    assert model.config.encoder_layers == like.config.encoder_layers
    assert model.config.embedding_size == like.config.embedding_size


# ------------------------------------------------------------------ the same path


@pytest.mark.parametrize("kind", [LSTMTask, TransformerTask])
def test_controls_task_changes_the_model_alone(kind: type[ControlTask]) -> None:
    own = {name for name, _ in inspect.getmembers(ClassificationTask, inspect.isfunction)}
    changed = {
        name for name in own
        if getattr(kind, name) is not getattr(ClassificationTask, name)
    }  # fmt: skip
    assert changed == {"make_model", "illustrate"}
    for name in ("kinds", "without", "defaults"):
        assert getattr(kind, name) is getattr(ClassificationTask, name)


def test_runs_have_the_same_data_and_updates(tmp_path: Path) -> None:
    script, records = load_script("classifier"), {}
    for arch in ("qrnn", *ARCHITECTURES):
        argv = flags(tmp_path, output_dir=tmp_path / arch)
        status = script.main(argv) if arch == "qrnn" else run_control("classifier", arch, argv)
        assert status == 0
        run = json.loads((tmp_path / arch / "run.json").read_text())
        lines = (tmp_path / arch / "metrics.jsonl").read_text().splitlines()
        train = [x for x in map(json.loads, lines) if x["kind"] == "train"]
        records[arch] = (run["data"], [(x["step"], x["epoch"], x["learning_rate"]) for x in train])
        assert 0 <= json.loads((tmp_path / arch / "test.json").read_text())["accuracy"] <= 1
        assert "that classifies texts" in (tmp_path / arch / "README.md").read_text()
    assert records["lstm"] == records["transformer"] == records["qrnn"]
    # What is saved is the control itself.
    best = LSTMForSequenceClassification.from_pretrained(tmp_path / "lstm")
    assert best.config.id2label == {0: "0", 1: "1"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_control_resumes_exactly(tmp_path: Path, arch: str) -> None:
    assert run_control("classifier", arch, flags(tmp_path)) == 0
    whole = ended(tmp_path / "out")
    last = sorted((tmp_path / "out/checkpoints").glob("step-*"))[-2]
    again = flags(tmp_path, output_dir=tmp_path / "again", resume=last)
    assert run_control("classifier", arch, again) == 0
    assert ended(tmp_path / "again")["weights_sha256"] == whole["weights_sha256"]


def test_control_begins_with_no_trained_qrnn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_control("classifier", "lstm", flags(tmp_path, init_from="x"))
    assert "init_from" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_word_vectors_are_the_controls_too(tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{x} {' '.join([str(i)] * 8)}\n" for i, x in enumerate("abc", 1)))
    for arch, kind in ARCHITECTURES.items():
        own = {"tokenizer": "word", "word_vectors": vectors, "learning_rate": 1e-9}
        argv = flags(tmp_path, output_dir=tmp_path / arch, max_steps=1, **own)
        assert run_control("classifier", arch, argv) == 0
        weight = kind.from_pretrained(tmp_path / arch).get_input_embeddings().weight
        for i in (1.0, 2.0, 3.0):
            assert any(torch.allclose(row, torch.tensor(i), atol=1e-5) for row in weight)


def test_row_of_a_control_has_the_updates_of_its_model(tmp_path: Path) -> None:
    flags(tmp_path)
    control = parse_row("imdb-modern-lstm-updates")
    data = tmp_path / "data/sentiment_imdb"
    data.mkdir(parents=True)
    for name in ("train", "test"):
        text = (tmp_path / f"{name}.jsonl").read_bytes()
        (data / f"{name}.jsonl.xz").write_bytes(lzma.compress(text))
    like = parse_row(control.like)
    results = tmp_path / "results"
    write_result(like, {"row": like.name, "updates": 3, "seconds": 60.0}, results)
    tiny = ("--hidden_size", "8", "--embedding_size", "8", "--mixed_precision", "no")
    own = {"out": tmp_path / "runs", "results": results, "cards": tmp_path / "cards"}
    record = run_row(control, Setting(data=data.parent, flags=tiny, **own))
    assert record["updates"] == 3
    assert 0 <= record["accuracy"] <= 1
    assert not (tmp_path / "cards").exists()
