"""Two processes: the same gradients, scores and sentences as one; nothing falls back silently."""

import json
import os
import subprocess
import sys
from pathlib import Path

import multiprocess_worker as worker
import pytest
import torch
from safetensors.torch import load_file
from training_script import ACCELERATE, ROOT, TORCHRUN
from transformers import AutoModelForSeq2SeqLM

from hf_qrnn.training import processes
from hf_qrnn.training.options import RunOptions


def python(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Start two processes and return the folder of their results."""
    folder = tmp_path_factory.mktemp("two")
    result = python(*TORCHRUN, ROOT / "tests/support/multiprocess_worker.py", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("name", ["gradients-2x8", "gradients-2x2x4"])
def test_gradients_do_not_depend_on_how_sixteen_pairs_are_split(two: Path, name: str) -> None:
    one = worker.gradients(1, 16)
    assert max(float(grad.abs().max()) for grad in one.values()) > 1e-2
    assert one.keys() == load_file(two / f"{name}.safetensors").keys()
    for key, grad in load_file(two / f"{name}.safetensors").items():
        torch.testing.assert_close(grad, one[key], atol=1e-6, rtol=0)


def test_gradients_do_not_depend_on_accumulation() -> None:
    one, accumulated = worker.gradients(1, 16), worker.gradients(2, 8)
    for key, grad in accumulated.items():
        torch.testing.assert_close(grad, one[key], atol=1e-6, rtol=0)


def test_a_filler_on_the_other_process_weighs_nothing(two: Path) -> None:
    one = worker.gradients(1, 8, num_pairs=8)
    for key, grad in load_file(two / "gradients-filler.safetensors").items():
        torch.testing.assert_close(grad, one[key], atol=1e-6, rtol=0)


def test_evaluation_of_two_processes_is_that_of_one(two: Path) -> None:
    one, found = worker.evaluation(11), json.loads((two / "evaluation.json").read_text())
    assert found["texts"] == one["texts"]
    assert len(set(found["texts"])) > 3
    assert found["record"] == one["record"]
    assert 10 < found["record"]["bleu"] < 100
    assert found["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_a_sharded_model_has_the_same_checkpoints(two: Path) -> None:
    found = json.loads((two / "sharded.json").read_text())
    assert found["hashes"][0] == found["hashes"][1]
    assert found["names"] == sorted(name for name, _ in worker.small_model().named_parameters())


# ------------------------------------------------------------------ launching


def flags(folder: Path, **changes: object) -> list[str]:
    lines = [f"{'ab' * (i % 5)}c" for i in range(60)]
    for name in ("a", "b"):
        (folder / name).write_text("".join(line + "\n" for line in lines))
    options = {
        **{f"{split}_source": folder / "a" for split in ("train", "valid", "test")},
        **{f"{split}_target": folder / "b" for split in ("train", "valid", "test")},
        **{"hidden_size": 8, "embedding_size": 8, "encoder_layers": 1, "decoder_layers": 1},
        **{"output_dir": folder / "out", "max_steps": 4, "max_tokens": 64, "num_beams": 1},
        **{"log_every": 2, "num_threads": 1, "gradient_accumulation_steps": 2, **changes},
    }
    return ["--cpu", *(text for k, v in options.items() for text in (f"--{k}", str(v)))]


def test_accelerate_launch_trains_in_two_processes(tmp_path: Path) -> None:
    script = ROOT / "scripts/train_translation.py"
    changes = {"expect_world_size": 2, "mixed_precision": "bf16", "report_to": "tensorboard"}
    pytest.importorskip("tensorboard")
    result = python(*ACCELERATE, script, *flags(tmp_path, **changes), ACCELERATE_USE_CPU="1")
    assert result.returncode == 0, result.stderr
    assert "world size 2, backend gloo, MULTI_CPU, device cpu, mixed precision bf16" in (
        result.stderr
    )
    out = tmp_path / "out"
    AutoModelForSeq2SeqLM.from_pretrained(out)
    assert json.loads((out / "test.json").read_text())["sentences"] == 60
    assert json.loads((out / "training.json").read_text())["finished"] == "budget"
    _check_tensorboard(out)


def _check_tensorboard(out: Path) -> None:
    """The scalars of the tracker are those of metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted((out / "trackers").rglob("*tfevents*"), key=lambda path: len(path.parts))
    events = EventAccumulator(str(files[0].parent))  # the options of the run are deeper
    events.Reload()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for kind, name in (("train", "loss"), ("train", "bits_per_char"), ("valid", "bleu")):
        scalars = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        written = [(x["step"], x[name]) for x in records if x["kind"] == kind]
        assert scalars == [(step, pytest.approx(value)) for step, value in written]
        assert written


def test_a_silent_fall_back_to_one_process_is_refused() -> None:
    rule = r"`expect_world_size` must be the number of processes, 1, but is 2: .* needs ACCELERATE"
    with pytest.raises(ValueError, match=rule):
        processes.make_accelerator(RunOptions(cpu=True, expect_world_size=2))
    processes.make_accelerator(RunOptions(cpu=True, expect_world_size=1))


def test_a_tracker_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"`report_to` must name installed .*'wandb' is not"):
        processes.make_accelerator(RunOptions(cpu=True, report_to="tensorboard, wandb"))
    with pytest.raises(ValueError, match=r"`report_to` must be none or some of .*'paper'"):
        processes.make_accelerator(RunOptions(cpu=True, report_to="paper"))
