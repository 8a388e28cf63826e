"""Controls of language modelling: stacks that carry states, equal sizes, the QRNN's own path."""

import inspect
import json
import math
from pathlib import Path
from typing import Any

import controls
import pytest
import torch
from controls import control_task, load_script, run_control
from equal_sizes import count_parameters
from language_model_controls import (
    MEMORY,
    ControlTask,
    LSTMLanguageModel,
    LSTMTask,
    TransformerLanguageModel,
    TransformerTask,
)
from text_runs import ended, flags

from hf_qrnn import QRNNConfig, QRNNForCausalLM
from hf_qrnn.training.language_model_task import LanguageModelTask
from hf_qrnn.training.text_stream import begin, read_on, write_on

ARCHITECTURES = {"lstm": LSTMLanguageModel, "transformer": TransformerLanguageModel}


def qrnn(**changes: Any) -> QRNNForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "embedding_size": 32, "hidden_size": 32, "decoder_layers": 2}
    return QRNNForCausalLM(QRNNConfig(**{**sizes, "is_encoder_decoder": False, **changes}))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_chunks_are_one_pass(arch: str) -> None:
    model: Any = ARCHITECTURES[arch].like(qrnn(dropout=0.3, locked_dropout=True)).eval()
    tokens = torch.randint(4, 50, (2, MEMORY + 150))
    found = []
    for size in (tokens.shape[1], 105, 40):
        state, total = begin(model, 2), 0.0
        for part in tokens.split(size, dim=1):
            nats, state = read_on(model, part, state)
            total += float(nats)
        found.append(math.exp(total / tokens.numel()))
    assert found[1:] == pytest.approx([found[0]] * 2, abs=1e-4)
    # What was read changes what comes, and nothing after a token changes its share.
    other, _ = read_on(model, tokens[:, :5], state)
    assert float(other) != pytest.approx(float(read_on(model, tokens[:, :5], begin(model, 2))[0]))
    changed = tokens.clone()
    changed[:, 60] = changed[:, 60] % 46 + 4
    with torch.no_grad():
        one, two = (model(x).logits for x in (tokens, changed))
    torch.testing.assert_close(one[:, :60], two[:, :60], rtol=0, atol=1e-5)
    assert not torch.allclose(one[:, 60:80], two[:, 60:80])
    written, _ = write_on(model, 5, state)
    assert written.shape == (2, 5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_control_has_as_many_parameters(arch: str, tied: bool) -> None:
    like = qrnn(hidden_size=96, embedding_size=96, tie_word_embeddings=tied, vocab_size=500)
    model = ARCHITECTURES[arch].like(like)
    assert count_parameters(model) == pytest.approx(count_parameters(like), rel=0.05)
    assert model.config.decoder_layers == 2


def test_lstm_of_the_papers_preset_has_as_many_parameters() -> None:
    with torch.device("meta"):
        like = qrnn(vocab_size=10_000, embedding_size=640, hidden_size=640)
    assert count_parameters(like) == 17_729_040
    model = LSTMLanguageModel.like(like)
    assert count_parameters(model) == pytest.approx(17_729_040, rel=2e-3)
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.LSTM)]
    assert [(x.num_layers, x.hidden_size) for x in stacks] == [(2, model.config.hidden_size)]


# ------------------------------------------------------------------ the same path


@pytest.mark.parametrize("kind", [LSTMTask, TransformerTask])
def test_controls_task_changes_the_model_alone(kind: type[ControlTask]) -> None:
    own = {name for name, _ in inspect.getmembers(LanguageModelTask, inspect.isfunction)}
    changed = {
        name for name in own
        if getattr(kind, name) is not getattr(LanguageModelTask, name)
    }  # fmt: skip
    assert changed == {"make_model"}
    for name in ("kinds", "without", "defaults"):
        assert getattr(kind, name) is getattr(LanguageModelTask, name)


def test_every_control_is_run_by_its_scripts_main(monkeypatch: pytest.MonkeyPatch) -> None:
    for task, arch in [(t, a) for t in controls.CONTROLS for a in controls.ARCHITECTURES]:
        script = load_script(task)
        ran: list[tuple[type, list[str]]] = []
        monkeypatch.setattr(controls, "load_script", lambda _, script=script: script)
        monkeypatch.setattr(
            script, "run_task", lambda kind, argv, ran=ran: ran.append((kind, argv))
        )
        original = getattr(load_script(task), controls.CONTROLS[task].task)
        run_control(task, arch, ["--cpu"])
        assert ran == [(control_task(task, arch), ["--cpu"])]
        assert issubclass(ran[0][0], original)
        monkeypatch.undo()


def test_command_line_names_task_and_architecture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, str, list[str]]] = []
    monkeypatch.setattr(controls, "run_control", lambda *given: ran.append(given) or 0)
    flags = ["--config", "x.yaml", "--cpu"]
    assert controls.main(["language_model", "--arch", "lstm", *flags]) == 0
    assert ran == [("language_model", "lstm", flags)]
    for argv, sentence in (
        (["nothing", "--arch", "lstm"], "error: argument TASK: invalid choice: 'nothing'"),
        (["language_model"], "error: the following arguments are required: --arch"),
        (["language_model", "--arch", "gru"], "error: argument --arch: invalid choice: 'gru'"),
    ):
        with pytest.raises(SystemExit) as ended_by:
            controls.main(argv)
        assert ended_by.value.code == 2
        assert sentence in capsys.readouterr().err


def test_runs_have_the_same_data_and_updates(tmp_path: Path) -> None:
    options = {"hidden_size": 32, "embedding_size": 32, "max_steps": 9, "sample_tokens": 9}
    script, records = load_script("language_model"), {}
    for arch in ("qrnn", *ARCHITECTURES):
        argv = flags(tmp_path, **options, output_dir=tmp_path / arch, test_file=tmp_path / "test")
        status = script.main(argv) if arch == "qrnn" else run_control("language_model", arch, argv)
        assert status == 0
        run = json.loads((tmp_path / arch / "run.json").read_text())
        lines = (tmp_path / arch / "metrics.jsonl").read_text().splitlines()
        train = [x for x in map(json.loads, lines) if x["kind"] == "train"]
        records[arch] = (run["data"], [(x["step"], x["epoch"], x["learning_rate"]) for x in train])
        assert json.loads((tmp_path / arch / "test.json").read_text())["perplexity"] > 1
        assert len((tmp_path / arch / "samples.txt").read_text()) > 1
    assert records["lstm"] == records["transformer"] == records["qrnn"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_control_resumes_exactly(tmp_path: Path, arch: str) -> None:
    argv = flags(tmp_path, max_steps=10, hidden_size=16, embedding_size=16)
    assert run_control("language_model", arch, argv) == 0
    whole = ended(tmp_path / "out")
    last = sorted((tmp_path / "out/checkpoints").glob("step-*"))[-2]
    again = flags(tmp_path, max_steps=10, hidden_size=16, embedding_size=16,
                  output_dir=tmp_path / "again", resume=last)  # fmt: skip
    assert run_control("language_model", arch, again) == 0
    assert ended(tmp_path / "again")["weights_sha256"] == whole["weights_sha256"]
