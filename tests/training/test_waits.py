"""An update on a GPU must not wait for it: readings of tensors, counted as if the CPU were one.

Every predicate that asks whether values may be read for nothing answers as on a GPU, and a dispatch
mode counts the operations that hand a tensor's values to the host.
"""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from hf_qrnn import QRNNCache, QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.data.batching import Batch, BucketBatchSampler, EncodedPair, make_loader
from hf_qrnn.model import checks_qrnn, padding_qrnn
from hf_qrnn.model.internals_qrnn import assert_later
from hf_qrnn.model.padding_qrnn import real_steps
from hf_qrnn.training import loop
from hf_qrnn.training.loop import LoopOptions, Trainer
from hf_qrnn.training.stopping import DivergenceWatch

READERS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim", "_unique2"}


class Readings(TorchDispatchMode):
    """A count of the operations that wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype is torch.bool for x in args[1]
        )
        if name in READERS or by_mask:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value may be read; the few readings at first are over."""
    for module in (checks_qrnn, padding_qrnn):
        monkeypatch.setattr(module, "may_read", lambda tensor: False)
    monkeypatch.setattr(padding_qrnn, "may_wait", waits_of("cuda"))
    monkeypatch.setattr(checks_qrnn, "_waits", itertools.count(checks_qrnn.MAX_WAITS))
    monkeypatch.setattr(loop, "peak_memory", lambda device: 0)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)


def waits_of(kind: str) -> Any:
    """Make `may_wait` of a tensor that says it is on a device of this kind."""
    real = checks_qrnn.may_wait
    tensor = SimpleNamespace(device=SimpleNamespace(type=kind))
    return lambda _: real(tensor)  # type: ignore[arg-type]


def make_trainer(**options: Any) -> Trainer:
    config = QRNNConfig(
        vocab_size=9, embedding_size=4, hidden_size=4, encoder_layers=2, decoder_layers=2,
        encoder_bidirectional=True, reverse_source=False, residual=True, rms_norm=True,
        attention_layers="all", dropout=0.1,
    )  # fmt: skip
    pairs = [EncodedPair([3] * (2 + i % 3), [4] * (3 + i % 2)) for i in range(40)]
    sampler = BucketBatchSampler(pairs, max_tokens=16)
    return Trainer(
        QRNNForConditionalGeneration(config),
        make_loader(pairs, sampler, pad_token_id=0),
        sampler,
        LoopOptions(eval_every=10**9, save_every=0, label_smoothing=0.1, **options),
        Accelerator(cpu=True),
        chars_per_token=(1.0, 1.0),
        log=lambda record: None,
        validate=lambda step: (0.0, {}),
        save_best=lambda: None,
    )


def readings(num_updates: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    trainer = make_trainer(max_steps=num_updates, **options)
    # The loop asks for the kind of device; nothing else of it is used.
    stand_in = SimpleNamespace(type="cuda")
    monkeypatch.setattr(type(trainer.accelerator), "device", stand_in)
    with Readings() as found:
        trainer.train()
    assert trainer.state.step == num_updates
    return found.names


def test_an_update_reads_nothing(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        few = readings(2, patch, log_every=100)
    with monkeypatch.context() as patch:
        many = readings(6, patch, log_every=100)
    assert few == many  # those at the end, of the line of the log
    # Its loss and its norm; and the loader draws a seed, on the CPU.
    assert many == ["_local_scalar_dense"] * 3


def test_readings_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # The count above must not be blind.
    with Readings() as found:
        x = torch.tensor([1.0, 0.0])
        x.sum().item()
        assert bool(x.any())
        x[x > 0]
        x.nonzero()
    assert found.names == ["_local_scalar_dense", "_local_scalar_dense", "index", "nonzero"]


def test_masks_on_a_gpu_are_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_qrnn, "_waits", itertools.count())
    monkeypatch.setattr(padding_qrnn, "may_read", lambda tensor: False)
    monkeypatch.setattr(padding_qrnn, "may_wait", waits_of("cuda"))
    hole = torch.tensor([[1, 0, 1]])
    for _ in range(checks_qrnn.MAX_WAITS):
        with pytest.raises(ValueError, match="row 0 has a hole"):
            real_steps(hole, 3)
    asked: list[tuple[bool, str]] = []
    monkeypatch.setattr(
        padding_qrnn, "assert_later", lambda fits, sentence: asked.append((fits, sentence))
    )
    with Readings() as found:
        mask = real_steps(hole, 3)
        real_steps(torch.ones_like(hole), 3)
    assert found.names == []
    assert torch.equal(mask, hole.bool())
    # The device itself refuses them from here on.
    assert [bool(fits) for fits, _ in asked] == [False, True]
    with pytest.raises(RuntimeError, match="`attention_mask` must be one run of ones in every row"):
        assert_later(*asked[0])
    assert waits_of("mps")(hole)  # a device without such assertions


class Tensor:
    """A stand-in for a tensor of the CPU that is copied to a GPU."""

    is_cuda = False

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def pin_memory(self) -> "Tensor":
        self.log.append("pinned")
        return self

    def to(self, device: torch.device, **options: Any) -> str:
        self.log.append((device.type, options))
        return "copy"


def test_a_batch_is_copied_without_waiting() -> None:
    log: list[Any] = []
    batch = Batch({"labels": Tensor(log)}, False, 1, 1)
    assert batch.to(torch.device("cuda")).inputs == {"labels": "copy"}
    assert log == ["pinned", ("cuda", {"non_blocking": True})]
    del log[:]
    batch.to(torch.device("cpu"))
    assert log == [("cpu", {})]


def test_updates_are_read_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_qrnn.training import stopping

    asked: list[int] = []
    real = stopping._read

    def read(tensors: Any) -> Any:
        asked.append(len(tensors))
        return real(tensors)

    monkeypatch.setattr(stopping, "_read", read)
    watch = DivergenceWatch(limit=2.0)
    for step, nats in enumerate([3.0, 5.0, float("nan")], start=1):
        watch.add(step, [step], torch.tensor(nats), 2, torch.tensor(1.0))
    found = watch.check()
    assert found is not None
    assert (found.step, found.loss, found.grad_norm, found.indices) == (2, 2.5, 1.0, [2])
    assert watch.check() is None
    assert asked == [6, 0]


def test_a_decoding_step_with_a_static_cache_reads_nothing(as_on_a_gpu: None) -> None:
    # What reads nothing can be captured as a CUDA graph.
    config = QRNNConfig(
        vocab_size=9, embedding_size=4, hidden_size=4, encoder_layers=2, decoder_layers=2
    )
    model = QRNNForConditionalGeneration(config).eval()
    cache = QRNNCache(2, static=True)
    source = torch.full((2, 3), 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=source, attention_mask=mask)
        step = {
            "encoder_outputs": encoded,
            "attention_mask": mask,
            "decoder_input_ids": source[:, :1],
            "past_key_values": cache,
            "use_cache": True,
        }
        model(**step)
        with Readings() as found:
            model(**step)
    assert found.names == []
