"""Training that is killed, interrupted or diverges: what it leaves, and that a resume is exact."""

import errno
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from training_script import flags, load_script

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration, use_backend
from hf_qrnn.data.batching import BucketBatchSampler, EncodedPair, make_loader
from hf_qrnn.model import convolution_qrnn, products_qrnn
from hf_qrnn.model.backends_qrnn import unavailable
from hf_qrnn.training import checkpoint as checkpoint_module
from hf_qrnn.training import processes, run_state
from hf_qrnn.training.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    average_weights,
    hash_tensors,
    read_checkpoint,
    read_marker,
)
from hf_qrnn.training.identity import compare_identity
from hf_qrnn.training.loop import LoopOptions, Trainer
from hf_qrnn.training.run_folder import RunFolder
from hf_qrnn.training.stopping import DivergenceError, InterruptionError

ROOT = Path(__file__).parents[2]


def pairs(num: int = 24) -> list[EncodedPair]:
    generator = random.Random(0)
    rows = [[generator.randrange(4, 12) for _ in range(1 + i % 7)] + [1] for i in range(num)]
    return [EncodedPair(row, row[::-1][1:] + [1]) for row in rows]


class Run:
    """A small training run with everything random on, and what it logged."""

    def __init__(
        self,
        folder: Path,
        *,
        num_workers: int = 0,
        tied: bool = False,
        scores: list[float] | None = None,
        seed: int = 0,
        keep: tuple[int, int] = (99, 0),
        fields: dict[str, Any] | None = None,
        precision: str = "no",
        **options: object,
    ) -> None:
        torch.manual_seed(0)
        model = QRNNForConditionalGeneration(
            QRNNConfig(
                vocab_size=12, embedding_size=8, hidden_size=8, encoder_layers=1, decoder_layers=1,
                dropout=0.3, zoneout=0.2, tie_word_embeddings=tied, **(fields or {}),
            )
        )  # fmt: skip
        given = {"max_steps": 9, "max_tokens": 24, "gradient_accumulation_steps": 2}
        self.options = LoopOptions(
            **{**given, "save_every": 1, "eval_every": 3, "log_every": 2, **options}  # type: ignore[arg-type]
        )
        data = pairs()
        sampler = BucketBatchSampler(data, max_tokens=self.options.max_tokens, seed=seed)
        self.records: list[dict[str, object]] = []
        self.checkpoints = CheckpointFolder(folder, keep_last=keep[0], keep_best=keep[1])
        self.saved: list[str] = []
        self.trainer = Trainer(
            model,
            make_loader(data, sampler, pad_token_id=0, num_workers=num_workers),
            sampler,
            self.options,
            Accelerator(cpu=True, mixed_precision=precision),
            chars_per_token=(1.0, 1.0),
            log=self.log,
            validate=lambda step: ((scores or [0.0] * 99)[step // 3 - 1], {"loss": 0.0}),
            save_best=lambda: self.saved.append(self.trainer.weights_hash()),
            checkpoints=self.checkpoints,
            identity={"seed": seed, **self.options.shaping()},
        )

    def log(self, record: dict[str, object]) -> None:
        self.records.append(record)

    def losses(self, after: int = 0) -> list[tuple[object, object]]:
        found = [x for x in self.records if x["kind"] == "train" and int(str(x["step"])) > after]
        return [(record["step"], record["loss"]) for record in found]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"tied": True, "optimizer": "adam"}],
    ids=["adamw", "workers", "tied-adam"],
)
def test_every_checkpoint_of_a_run_resumes_to_the_same_end(
    tmp_path: Path, options: dict[str, object]
) -> None:
    whole = Run(tmp_path, **options)  # type: ignore[arg-type]
    state = whole.trainer.train()
    assert state.epoch > 0
    assert (state.step, state.finished) == (9, "budget")
    paths = whole.checkpoints.complete()
    assert [int(path.name[5:]) for path in paths] == list(range(1, 10))
    for path in paths[:-1] if not options else paths[2:3]:
        torch.manual_seed(99)
        random.seed(99)
        resumed = Run(tmp_path / "other", **options)  # type: ignore[arg-type]
        resumed.trainer.restore(path)
        step = resumed.trainer.state.step
        resumed.trainer.train()
        assert resumed.losses() == whole.losses(after=step)
        assert resumed.trainer.weights_hash() == whole.trainer.weights_hash()


@pytest.fixture
def _another_precision() -> Iterator[None]:
    """Accelerate keeps the first precision of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("_another_precision")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_model_with_residuals_and_norms_resumes_exactly_on_each_backend(
    tmp_path: Path, backend: str, precision: str
) -> None:
    # All that dropout's bits are drawn for: embeddings, connections, attention, feed-forward.
    reason = unavailable(backend, torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)
    fields = {
        "residual": True,
        "rms_norm": True,
        "feed_forward_size": 8,
        "attention_layers": "all",
        "num_attention_heads": 2,
    }
    with use_backend(backend):
        whole = Run(tmp_path, fields=fields, precision=precision)
        whole.trainer.train()
        for path in whole.checkpoints.complete()[2:8:4]:
            torch.manual_seed(99)
            resumed = Run(tmp_path / "other", fields=fields, precision=precision)
            resumed.trainer.restore(path)
            step = resumed.trainer.state.step
            resumed.trainer.train()
            assert resumed.losses() == whole.losses(after=step)
            assert resumed.trainer.weights_hash() == whole.trainer.weights_hash()
        # Dropout is on: another seed ends elsewhere.
        other = Run(tmp_path / "another", fields=fields, precision=precision)
        other.trainer.restore(whole.checkpoints.complete()[2])
        torch.manual_seed(99)
        other.trainer.train()
        assert other.trainer.weights_hash() != whole.trainer.weights_hash()


def test_resuming_without_the_random_states_would_differ(tmp_path: Path) -> None:
    # The test above could not see a broken resume if nothing were random.
    whole = Run(tmp_path)
    whole.trainer.train()
    other = Run(tmp_path / "other")
    other.trainer.restore(whole.checkpoints.complete()[2])
    torch.manual_seed(99)
    other.trainer.train()
    assert other.trainer.weights_hash() != whole.trainer.weights_hash()


def test_a_finished_run_has_nothing_to_resume_until_its_budget_grows(tmp_path: Path) -> None:
    whole = Run(tmp_path, scores=[1.0, 2.0, 3.0, 4.0])
    whole.trainer.train()
    newest = whole.checkpoints.newest()
    assert newest is not None
    again = Run(tmp_path)
    again.trainer.restore(newest)
    again.trainer.train()
    assert again.records == []
    assert again.trainer.weights_hash() == whole.trainer.weights_hash()
    more = Run(tmp_path, max_steps=12)
    more.trainer.restore(newest)
    assert more.trainer.train().step == 12


@pytest.mark.parametrize(
    ("options", "step", "finished"),
    [
        ({"max_steps": 4}, 4, "budget"),
        ({"max_steps": 3}, 4, "budget"),
        ({"patience": 1}, 6, "patience"),
    ],
    ids=["used", "more-than-used", "patience"],
)
def test_a_resume_where_no_update_is_left_makes_none_and_ends_as_a_whole_run(
    tmp_path: Path, options: dict[str, object], step: int, finished: str
) -> None:
    whole = Run(tmp_path, scores=[5.0, 4.0, 3.0])
    whole.trainer.train()
    path = whole.checkpoints.complete()[step - 1]
    again = Run(tmp_path / "other", scores=[6.0] * 9, **options)  # type: ignore[arg-type]
    again.trainer.restore(path)
    weights = again.trainer.weights_hash()
    state = again.trainer.train()
    assert (state.step, state.finished) == (step, finished)
    assert again.trainer.weights_hash() == weights
    # Update 4 was not validated yet, update 6 was.
    kinds = [(record["kind"], record["step"]) for record in again.records]
    assert kinds == ([] if step == 6 else [("valid", 4)])
    newest = again.checkpoints.newest()
    assert newest is not None
    assert newest.name == path.name
    assert read_marker(newest)["score"] == {4: 6.0, 6: 4.0}[step]
    assert read_checkpoint(newest).state["train"]["finished"] == finished


def test_a_finished_run_of_another_folder_leaves_its_model_in_this_one(tmp_path: Path) -> None:
    whole = Run(tmp_path)
    whole.trainer.train()
    other = Run(tmp_path / "other")
    newest = whole.checkpoints.newest()
    assert newest is not None
    other.trainer.restore(newest)
    other.trainer.state.best = None  # as the script does: that best model is elsewhere
    assert other.trainer.train().step == 9
    assert other.saved == [whole.trainer.weights_hash()]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"max_tokens": 25}, "max_tokens"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps"),
    ],
)
def test_another_runs_checkpoint_is_refused(
    tmp_path: Path, changed: dict[str, object], name: str
) -> None:
    first = Run(tmp_path, max_steps=1)
    first.trainer.train()
    path = first.checkpoints.complete()[0]
    other = Run(tmp_path / "other", **changed)  # type: ignore[arg-type]
    before = other.trainer.weights_hash()
    with pytest.raises(ValueError, match=f"`{name}` must be .* to resume from it, but is"):
        other.trainer.restore(path)
    assert other.trainer.weights_hash() == before


def test_the_refusal_names_the_field_and_an_absent_one_is_the_default() -> None:
    own = {"seed": 0, "training data": "aa", "model": {"hidden_size": 8, "new": None, "rest": 1}}
    defaults = {"model": {"rest": 1, "hidden_size": 320}, "nesterov": False}
    path = Path("run/step-1")

    def compare(**written: object) -> None:
        compare_identity({**own, "nesterov": False}, {**own, **written}, defaults, path)

    compare(model={"hidden_size": 8})  # of a version that knew no `rest`, `new` and `nesterov`
    whole = r"^`hidden_size` must be 320, as in 'run/step-1', to resume from it, but is 8\.$"
    with pytest.raises(ValueError, match=whole):
        compare(model={"rest": 1}, **{"training data": "bb"})
    with pytest.raises(ValueError, match=r"`rest` must be 2, .* but is 1"):
        compare(model={"hidden_size": 8, "rest": 2})
    with pytest.raises(ValueError, match=r"`training data` must be those of 'run/step-1' .* order"):
        compare(**{"training data": "bb"}, model={**own["model"], "vocab_size": 7})  # type: ignore[dict-item]


def test_checkpoints_of_older_versions_resume(tmp_path: Path) -> None:
    """Without fields that came later: of the model, of the loop, of the log."""
    whole = Run(tmp_path)
    whole.trainer.train()
    path = whole.checkpoints.complete()[2]
    state = json.loads((path / "state.json").read_text())
    model = {"model": {"vocab_size": 12, "hidden_size": 8}}
    del state["identity"]["label_smoothing"], state["identity"]["warmup_steps"]
    del state["meters"][0]["seconds"]
    (path / "state.json").write_text(
        json.dumps({**state, "identity": {**state["identity"], **model}})
    )
    marker = read_marker(path)
    marker["files"]["state.json"] = checkpoint_module._describe(path / "state.json")
    (path / "complete.json").write_text(json.dumps(marker))
    resumed = Run(tmp_path / "other")
    resumed.trainer.identity["model"] = {
        **model["model"],
        "pooling": "fo",
        "num_attention_heads": 1,
    }
    resumed.trainer.restore(path)
    resumed.trainer.train()
    assert resumed.trainer.weights_hash() == whole.trainer.weights_hash()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resume_is_exact(tmp_path: Path, number: signal.Signals) -> None:
    whole = Run(tmp_path / "whole")
    whole.trainer.train()
    cut = Run(tmp_path / "cut", save_every=100, log_every=1)
    log = cut.log

    def signalling(record: dict[str, object]) -> None:
        log(record)
        if record["step"] == 5:
            os.kill(os.getpid(), number)

    cut.trainer.log = signalling
    handler = signal.getsignal(number)
    with pytest.raises(InterruptionError, match=r"interrupted after update 6: .*step-00000006"):
        cut.trainer.train()
    assert signal.getsignal(number) is handler
    resumed = Run(tmp_path / "cut", save_every=100)
    newest = resumed.checkpoints.newest()
    assert newest is not None
    resumed.trainer.restore(newest)
    resumed.trainer.train()
    assert resumed.trainer.weights_hash() == whole.trainer.weights_hash()


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good(tmp_path: Path) -> None:
    run = Run(tmp_path, log_every=1, eval_every=100)

    def poison(record: dict[str, object]) -> None:
        if record["step"] == 5:
            next(run.trainer.model.parameters()).data.fill_(math.nan)

    run.trainer.log = poison
    run.trainer.checkpoints = None  # does not see the poison before the loss does
    with pytest.raises(DivergenceError, match=r"update 6 .*; there is no checkpoint"):
        run.trainer.train()
    run = Run(tmp_path, log_every=1, eval_every=100)
    run.trainer.model.register_forward_pre_hook(
        lambda module, _: poison({"step": run.trainer.state.step + 1})
    )
    with pytest.raises(DivergenceError) as caught:
        run.trainer.train()
    message = str(caught.value)
    match = re.fullmatch(
        r"the loss must be finite and at most 12\.42 nats a token, but is nan at update 5 "
        r"\(gradient norm nan, training pairs ([\d, ]+)\); the last good checkpoint is '(.*)'\.",
        message,
    )
    assert match is not None, message
    assert {int(text) for text in match[1].split(", ")} <= set(range(24))
    assert match[2].endswith("step-00000004")
    weights = read_checkpoint(Path(match[2])).tensors["model"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_weights_that_are_not_numbers_are_not_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, log_every=1)

    def poison(record: dict[str, object]) -> None:
        if record["step"] == 4:
            next(run.trainer.model.parameters()).data[0, 0] = math.inf

    run.trainer.log = poison
    message = r"but 'model\.shared\.weight' is not after update 4; .*step-00000003'\.$"
    with pytest.raises(DivergenceError, match=message):
        run.trainer.train()


def test_an_exploding_loss_stops(tmp_path: Path) -> None:
    run = Run(tmp_path, learning_rate=50.0, schedule="constant", max_grad_norm=0, max_steps=300)
    with pytest.raises(DivergenceError, match=r"at most 12\.42 nats a token, but is [1-9]"):
        run.trainer.train()
    free = Run(
        tmp_path / "free", learning_rate=50.0, schedule="constant", max_grad_norm=0, loss_limit=0
    )
    assert free.trainer.train().step == 9


def test_patience_ends_training_and_the_best_is_kept(tmp_path: Path) -> None:
    scores = [1.0, 3.0, 2.0, 3.0, 9.0]
    run = Run(
        tmp_path, scores=scores, patience=2, max_steps=99, save_every=50, eval_every=3, keep=(1, 1)
    )
    state = run.trainer.train()
    assert (state.step, state.finished, state.best, state.since_best) == (12, "patience", 3.0, 2)
    kept = {int(path.name[5:]): read_marker(path)["score"] for path in run.checkpoints.complete()}
    assert kept == {6: 3.0, 12: 3.0}
    again = Run(tmp_path, patience=2, max_steps=99, keep=(1, 1))
    again.trainer.restore(run.checkpoints.complete()[-1])
    assert again.trainer.train().step == 12


@pytest.mark.parametrize("kind", ["last", "best"])
def test_the_average_becomes_the_model_where_it_is_better(tmp_path: Path, kind: str) -> None:
    keep = {"last": (2, 0), "best": (1, 2)}[kind]
    run = Run(tmp_path, keep=keep, average=kind, keep_last=keep[0], keep_best=keep[1], save_every=3)
    scores = iter([5.0, 4.0, 3.0, 6.0])
    run.trainer.validate = lambda step: (next(scores), {"loss": 0.0})
    run.trainer.train()
    steps = {"last": [6, 9], "best": [3, 6]}[kind]
    record = run.records[-1]
    assert record["kind"] == "average"
    assert sorted(record["of"]) == [f"step-{step:08d}" for step in steps]  # type: ignore[arg-type]
    assert record["is_best"] is True
    paths = [tmp_path / name for name in record["of"]]  # type: ignore[attr-defined]
    assert run.saved[-1] == hash_tensors(average_weights(paths))
    last = read_checkpoint(tmp_path / "step-00000009").tensors["model"]
    assert run.trainer.weights_hash() == hash_tensors(last)


def test_a_full_disk_ends_training_with_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    real = checkpoint_module.save_file

    def filling(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-00000004" in str(path) and path.stem == "optimizer":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_file", filling)
    with pytest.raises(CheckpointError, match=r"No space left on device; the last .*step-00000003"):
        run.trainer.train()
    monkeypatch.undo()
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest.name == "step-00000003"
    resumed = Run(tmp_path)
    resumed.trainer.restore(newest)
    assert resumed.trainer.train().step == 9


def test_random_states_go_through_tensors_exactly() -> None:
    random.gauss(0, 1)  # leaves the second number of a pair behind
    np.random.standard_normal()
    device = torch.device("cpu")
    state = run_state.random_state(device)
    draws = [
        (torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.standard_normal(3))
        for _ in range(2)
        if run_state.set_random_state(state, device) is None
    ]
    assert repr(draws[0]) == repr(draws[1])


def test_weights_of_another_model_are_refused() -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"'weight' of shape \(3, 2\), but have \(2, 2\)"):
        run_state.set_weights(model, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'bias' of shape \(3,\), but have None"):
        run_state.set_weights(model, {"weight": torch.zeros(3, 2)})


def test_metrics_after_the_checkpoint_are_dropped_and_a_cut_line_too(tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": 2}, {"kind": "valid", "step": 2}]
    lines += [{"kind": "average", "step": 2}, {"kind": "train", "step": 3}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '3\n[]\n{"step": 1}\n{"kind": "tra')
    draw = {"draw_curve": lambda records, path: None}
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    path = checkpoints.save(2, {"model": {"a": torch.zeros(1)}}, {})
    folder = RunFolder(tmp_path, is_main_process=True, may_be_used=True, **draw)  # type: ignore[arg-type]
    folder.begin(checkpoints, resumed=path)
    folder.log({"kind": "train", "step": 3, "again": True})
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == [*lines[:2], folder.records[-1]]


# ------------------------------------------------------------------ the script


def test_the_scripts_statuses_and_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = load_script(), tmp_path / "out"
    whole = tmp_path / "whole"
    assert script.main(flags(tmp_path, output_dir=whole)) == 0
    log = RunFolder.log

    def signalling(self: object, record: dict[str, object]) -> None:
        log(self, record)
        if record["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", signalling)
        assert script.main(flags(tmp_path)) == 75
    assert "stopped: interrupted after update 5: " in capsys.readouterr().err
    damaged = out / "checkpoints/step-00000005/optimizer.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    assert script.main(flags(tmp_path, resume="auto")) == 2
    assert f"error: '{damaged}' must be as it was written" in capsys.readouterr().err
    damaged.write_bytes(content)
    assert script.main(flags(tmp_path, resume="auto")) == 0
    hashes = [json.loads((x / "training.json").read_text())["weights_sha256"] for x in (out, whole)]
    assert hashes[0] == hashes[1]
    lines = [(x / "metrics.jsonl").read_text().splitlines() for x in (out, whole)]
    losses = [[(r["step"], r["loss"]) for r in map(json.loads, text)] for text in lines]
    assert losses[0] == losses[1]
    # Going on from another folder's checkpoint leaves a model in this one.
    other = flags(tmp_path, output_dir=tmp_path / "other", resume=whole, max_steps=10)
    assert script.main([*other, "--schedule", "cosine"]) == 0
    assert (tmp_path / "other/model.safetensors").is_file()
    diverging = flags(tmp_path, output_dir=tmp_path / "third", learning_rate=1e30, warmup_steps=0)
    assert script.main(diverging) == 3
    assert "stopped: the loss must be finite" in capsys.readouterr().err


def test_a_compiled_model_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile but not lowered to machine code, which would take minutes."""
    script, hashes = load_script(), []
    # A compiled model convolves by one product with its bias: here, to the last bit, both do.
    monkeypatch.setattr(convolution_qrnn, "LEAST_STEPS", 2**62)
    # To a compiler products are torch's.
    monkeypatch.setattr(products_qrnn, "prefers_onednn", lambda: False)
    plugin = processes.TorchDynamoPlugin
    monkeypatch.setattr(processes, "TorchDynamoPlugin", lambda backend, dynamic: plugin("eager"))
    for name in ("plain", "compiled"):
        AcceleratorState._reset_state(True)
        argv = flags(tmp_path, output_dir=tmp_path / name, max_steps=3)
        assert script.main([*argv, *(["--compile"] if name == "compiled" else [])]) == 0
        ended = json.loads((tmp_path / name / "training.json").read_text())
        hashes.append(ended["weights_sha256"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    AcceleratorState._reset_state(True)
    assert hashes[0] == hashes[1]


def test_kills_at_random_moments_in_every_kind_of_run(tmp_path: Path) -> None:
    """SIGKILL to 1 and 2 processes, float32 and bfloat16, 0 and 2 workers, once inside a save."""
    out = tmp_path / "results.json"
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/stress_resume.py"), "--kills", "4", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "4 of 4 equal"
    report = json.loads(out.read_text())
    trials = report["trials"]
    assert {trial["processes"] for trial in trials} == {1, 2}
    assert {trial["precision"] for trial in trials} == {"no", "bf16"}
    assert {trial["workers"] for trial in trials} == {0, 2}
    assert {trial["precision"] for trial in trials if trial["blocks"]} == {"no", "bf16"}
    assert all(trial["equal"] for trial in trials)
