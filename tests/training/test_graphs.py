"""Whole updates as graphs: a stand-in for CUDA's records the same work and does it again."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.data.batching import Batch, BucketBatchSampler, EncodedPair, make_loader
from hf_qrnn.training import graphs, loop
from hf_qrnn.training.checkpoint import CheckpointFolder
from hf_qrnn.training.graphs import MAX_GRAPHS, Outcome, UpdateGraphs, make_recorder
from hf_qrnn.training.loop import LoopOptions, Trainer
from hf_qrnn.training.stopping import DivergenceError

# Two shapes of batches that come in turn, of pairs that are all different.
PAIRS = [EncodedPair([3 + i % 5] * (4 + 4 * (i // 20)), [4 + i % 4] * 4) for i in range(40)]


class Recorder:
    """As CUDA's: what is recorded is not done, and what is played reads and writes what it read.

    Attributes:
        asides: Pieces of work that were done at once.
        recorded: Pieces of work that were recorded.
        played: How often each was played.
    """

    def __init__(self) -> None:
        self.asides = 0
        self.recorded: list[Callable[[], Outcome]] = []
        self.played: list[int] = []

    def aside(self, call: Callable[[], Outcome]) -> Outcome:
        self.asides += 1
        return call()

    def record(self, call: Callable[[], Outcome]) -> Callable[[], Outcome]:
        self.recorded.append(call)
        self.played.append(0)
        index = len(self.played) - 1
        kept: list[Outcome] = []

        def play() -> Outcome:
            self.played[index] += 1
            nats, norm = call()
            if not kept:  # the tensors of a graph are always the same
                kept.append(Outcome([torch.empty_like(x) for x in nats], torch.empty_like(norm)))
            for x, value in zip((*kept[0].nats, kept[0].grad_norm), (*nats, norm), strict=True):
                x.copy_(value)
            return kept[0]

        return play


class Operations(TorchDispatchMode):
    """A list of operations, to be done again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, found in self.done:
            again = func(*args, **kwargs)
            for kept, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                # A view, or what was changed in place, is there already.
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class OperationsRecorder(Recorder):
    """Stricter: no Python runs after the first time, so a number of Python's never changes."""

    def record(self, call: Callable[[], Outcome]) -> Callable[[], Outcome]:
        self.recorded.append(call)
        self.played.append(0)
        index, operations = len(self.played) - 1, Operations()
        kept: list[Outcome] = []

        def play() -> Outcome:
            self.played[index] += 1
            if kept:
                operations.play()
            else:
                with operations:
                    kept.append(call())
            return kept[0]

        return play


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The stand-in, which the trainers of a test get."""
    found = Recorder()
    monkeypatch.setattr(loop, "make_recorder", lambda device: found)
    return found


def make_trainer(
    folder: Path | None = None, pairs: Any = None, accelerator: Any = None, **options: Any
) -> Trainer:
    torch.manual_seed(0)
    config = QRNNConfig(
        vocab_size=9, embedding_size=4, hidden_size=4, encoder_layers=2, decoder_layers=2,
        encoder_bidirectional=True, reverse_source=False, residual=True, rms_norm=True,
        attention_layers="all", dropout=0.2, zoneout=0.1,
    )  # fmt: skip
    pairs = pairs or PAIRS
    sampler = BucketBatchSampler(pairs, max_tokens=32, pad_to_multiple_of=4)
    records: list[dict[str, Any]] = []
    given = {"eval_every": 10**9, "save_every": 0, "log_every": 1, "learning_rate": 1e-2}
    trainer = Trainer(
        QRNNForConditionalGeneration(config),
        make_loader(pairs, sampler, pad_token_id=0, pad_to_multiple_of=4),
        sampler,
        LoopOptions(**(given | {"label_smoothing": 0.1, "warmup_steps": 3} | options)),
        accelerator or Accelerator(cpu=True),
        chars_per_token=(1.0, 1.0),
        log=records.append,
        validate=lambda step: (0.0, {"loss": 1.0}),
        save_best=lambda: None,
        checkpoints=None if folder is None else CheckpointFolder(folder, keep_last=9),
    )
    trainer.records = records  # type: ignore[attr-defined]
    return trainer


def train(folder: Path | None = None, **options: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    trainer = make_trainer(folder, **options)
    trainer.train()
    found: list[dict[str, Any]] = trainer.records  # type: ignore[attr-defined]
    return trainer, [x for x in found if x["kind"] == "train"]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in trainer.model.named_parameters()}


@pytest.mark.parametrize("size", [1, 2], ids=["one batch", "two batches"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_updates_are_those_without_graphs(recorder: Recorder, size: int, optimizer: str) -> None:
    more = {"gradient_accumulation_steps": size, "optimizer": optimizer, "max_grad_norm": 0.5}
    plain, before = train(max_steps=12, **more)
    graphed, after = train(max_steps=12, cuda_graphs=True, **more)
    assert recorder.asides > 0
    assert sum(recorder.played) > 6
    assert recorder.asides + sum(recorder.played) == 12
    # The rate is a float32 tensor here, and a Python number there.
    torch.testing.assert_close(weights(graphed), weights(plain), rtol=1e-5, atol=1e-6)
    for one, other in zip(after, before, strict=True):
        for name in ("loss", "grad_norm", "learning_rate", "padding"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    assert len({x["loss"] for x in after}) > 6  # no batch was seen for another


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_nothing_that_changes_is_a_number_of_python(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    strict = OperationsRecorder()
    monkeypatch.setattr(loop, "make_recorder", lambda device: strict)
    # Batches of one shape have different sums of tokens, and rates rise and fall.
    pairs = [EncodedPair([3 + i % 5] * 4, [4 + i % 4] * (1 + i % 4)) for i in range(40)]
    more = {"optimizer": optimizer, "max_grad_norm": 0.5, "pairs": pairs, "max_steps": 12}
    plain, before = train(**more)
    graphed, after = train(cuda_graphs=True, **more)
    assert sum(strict.played) > 6
    torch.testing.assert_close(weights(graphed), weights(plain), rtol=1e-5, atol=1e-6)
    for one, other in zip(after, before, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name


def test_a_rate_of_python_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # The test above must not be blind.
    strict = OperationsRecorder()
    monkeypatch.setattr(loop, "make_recorder", lambda device: strict)

    def set_rate(self: UpdateGraphs, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    plain, _ = train(max_steps=12)
    monkeypatch.setattr(UpdateGraphs, "set_rate", set_rate)
    graphed, _ = train(max_steps=12, cuda_graphs=True)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(weights(graphed), weights(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("size", [1, 2], ids=["one batch", "two batches"])
def test_a_gpu_makes_the_updates_it_makes_without_graphs(optimizer: str, size: int) -> None:
    AcceleratorState._reset_state(True)
    try:
        accelerator = Accelerator()
        more: dict[str, Any] = {"optimizer": optimizer, "gradient_accumulation_steps": size}
        # So large that rounding decides no sign of an update.
        more |= {"adam_epsilon": 1e-3, "max_steps": 24, "accelerator": accelerator}
        plain, before = train(**more)
        graphed, after = train(cuda_graphs=True, **more)
        assert graphed.graphs is not None
        assert len(graphed.graphs) > 0
        # Dropout and zoneout draw the same: torch's generator goes on from replay to replay.
        torch.testing.assert_close(weights(graphed), weights(plain), rtol=1e-3, atol=1e-4)
        for one, other in zip(after, before, strict=True):
            for name in ("loss", "grad_norm"):
                assert one[name] == pytest.approx(other[name], rel=1e-3), name
    finally:
        AcceleratorState._reset_state(True)


def test_a_shape_is_captured_when_it_comes_again(recorder: Recorder) -> None:
    trainer = make_trainer(max_steps=12, cuda_graphs=True)
    assert trainer.graphs is not None
    seen: Counter[Any] = Counter()
    real = trainer.graphs.update

    def update(group: Any, divisor: float) -> Outcome:
        seen[tuple(tuple(batch.inputs["input_ids"].shape) for batch in group)] += 1
        return real(group, divisor)

    trainer.graphs.update = update  # type: ignore[method-assign]
    trainer.train()
    again = [number for number in seen.values() if number > 1]
    assert recorder.asides == len(seen) > 1
    assert sorted(recorder.played) == sorted(number - 1 for number in again)
    assert len(trainer.graphs) == len(again)


def test_there_are_no_more_graphs_than_allowed(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[UpdateGraphs] = []

    def few(*given: Any) -> UpdateGraphs:
        made.append(UpdateGraphs(*given, max_graphs=1))
        return made[0]

    monkeypatch.setattr(loop, "UpdateGraphs", few)
    graphed, _ = train(max_steps=12, cuda_graphs=True)
    assert (len(made[0]), len(recorder.recorded)) == (1, 1)
    assert recorder.asides > 3
    monkeypatch.undo()
    plain, _ = train(max_steps=12)
    torch.testing.assert_close(weights(graphed), weights(plain), rtol=1e-5, atol=1e-6)
    assert MAX_GRAPHS >= 16


def test_a_resumed_run_is_the_same_to_the_bit(recorder: Recorder, tmp_path: Path) -> None:
    whole, _ = train(max_steps=12, cuda_graphs=True, schedule="constant")
    train(tmp_path / "runs", max_steps=7, save_every=7, cuda_graphs=True, schedule="constant")
    rest = make_trainer(max_steps=12, cuda_graphs=True, schedule="constant")
    (path,) = CheckpointFolder(tmp_path / "runs").complete()
    rest.restore(path)
    rest.train()
    assert rest.state.step == 12
    assert rest.weights_hash() == whole.weights_hash()


def test_a_run_without_graphs_is_another_run(recorder: Recorder, tmp_path: Path) -> None:
    train(tmp_path / "runs", max_steps=2, save_every=2)
    (path,) = CheckpointFolder(tmp_path / "runs").complete()
    trainer = make_trainer(max_steps=4, cuda_graphs=True)
    assert "cuda_graphs" in trainer.options.shaping()
    trainer.identity |= trainer.options.shaping()
    with pytest.raises(ValueError, match="cuda_graphs"):
        trainer.restore(path)


def test_a_loss_that_is_not_a_number_ends_training(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(max_steps=12, cuda_graphs=True)
    real = trainer.forward
    calls: list[None] = []

    def forward(model: Any, batch: Batch, smoothing: float) -> Any:
        output = real(model, batch, smoothing)
        calls.append(None)
        if len(calls) == 8:
            output.loss = output.loss * float("nan")
            output["unsmoothed_loss"] = output.loss
        return output

    trainer.forward = forward
    with pytest.raises(DivergenceError, match="update 8"):
        trainer.train()


def test_what_an_update_gave_is_left_alone_by_the_next(recorder: Recorder) -> None:
    trainer = make_trainer(max_steps=12, cuda_graphs=True)
    assert trainer.graphs is not None
    batch = next(iter(trainer.loader))
    trainer.graphs.set_rate(0.1)
    found = [trainer.graphs.update([batch], 8.0) for _ in range(4)]
    assert recorder.played == [3]
    losses = [float(x.nats[0]) for x in found]
    assert len(set(losses)) == 4  # it learns, and dropout draws anew


def test_batches_on_the_device_are_not_copied_again() -> None:
    x = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch({"labels": x}, False, 1, 1)
    assert batch.to(torch.device("cpu")).inputs["labels"] is x


def test_a_device_without_graphs_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^`cuda_graphs` must be False on the device cpu, but is"):
        make_recorder(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^`cuda_graphs` must be False on the device cpu, but is"):
        make_trainer(cuda_graphs=True)


def test_several_processes_are_refused_in_one_sentence(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    monkeypatch.setattr(trainer.processes, "count", 2)
    with pytest.raises(ValueError, match=r"^`cuda_graphs` must be False with 2 processes, but is"):
        trainer._make_graphs()


def test_the_recorder_of_a_gpu_captures_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of torch that make a graph, in their order; a GPU alone can do them."""
    log: list[Any] = []

    class Stream:
        device = torch.device("cuda", 0)

        def __init__(self, device: Any = None) -> None:
            self.name = "own" if device is not None else "current"

        def wait_stream(self, other: Any) -> None:
            log.append((self.name, "waits for", other.name))

    class Within:
        def __init__(self, *given: Any, **more: Any) -> None:
            self.given = given, more

        def __enter__(self) -> None:
            log.append(("begin", *self.given))

        def __exit__(self, *error: Any) -> None:
            log.append("end")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Within(stream.name))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(
        torch.cuda, "graph", lambda graph, pool, stream, **more: Within(pool, stream.name, more)
    )
    found = graphs.make_recorder(torch.device("cuda", 0))
    outcome = Outcome([], torch.zeros(()))

    def call() -> Outcome:
        log.append("call")
        return outcome

    assert found.aside(call) is outcome
    assert log == [
        ("own", "waits for", "current"), ("begin", ("own",), {}), "call", "end",
        ("current", "waits for", "own"),
    ]  # fmt: skip
    del log[:]
    play = found.record(call)
    captured = ("pool", "own", {"capture_error_mode": "thread_local"})
    assert log == [("begin", captured, {}), "call", "end"]
    assert play() is outcome
    assert log[-1] == "replay"
