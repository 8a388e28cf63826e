"""Whole updates as CUDA graphs, one for each shape of a batch.

An update of a small model is hundreds of launches of a few microseconds each, and the host that
makes them is what is waited for. A graph holds them all: forward, backward, clipping and the
optimiser's step. What changes from update to update lies in tensors that the graph reads: the
batch, the number its loss is divided by, and the learning rate. torch's generator goes on from
replay to replay, so dropout draws what it would have drawn.

All graphs share one pool of memory. That is safe since they never run at once, and what one of them
leaves for the next (weights, the optimiser's moments) lies outside the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch

from hf_qrnn.data.batching import Batch

MAX_GRAPHS = 128
"""Most graphs of a run; further shapes are computed as without."""


class Outcome(NamedTuple):
    """Figures of an update, as tensors that nothing has waited for.

    Attributes:
        nats: The loss of each batch, summed over its target tokens, without smoothing.
        grad_norm: Norm of the gradient before it was rescaled.
    """

    nats: list[torch.Tensor]
    grad_norm: torch.Tensor


Compute = Callable[[Sequence[Batch], torch.Tensor], Outcome]
"""An update of batches, whose loss is divided by a 0-d tensor."""


class Recorder(Protocol):
    """A recorder of work on a device, which can be done again."""

    def aside(self, call: Callable[[], Outcome]) -> Outcome:
        """Do work where recordings are made, so that what it leaves is of use there."""

    def record(self, call: Callable[[], Outcome]) -> Callable[[], Outcome]:
        """Record work without doing it; what is returned does it, into the same tensors."""


class CudaRecorder:
    """The recorder of a GPU: CUDA graphs, captured on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def aside(self, call: Callable[[], Outcome]) -> Outcome:
        """Do work on the stream of the recordings: libraries make their workspaces there."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = call()
        current.wait_stream(self._stream)
        return found

    def record(self, call: Callable[[], Outcome]) -> Callable[[], Outcome]:
        """Capture work as a graph."""
        graph = torch.cuda.CUDAGraph()
        # Threads that load data may ask a GPU for memory meanwhile.
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            found = call()

        def play() -> Outcome:
            graph.replay()
            return found

        return play


def make_recorder(device: torch.device) -> Recorder:
    """Make the recorder of a device.

    Raises:
        ValueError: If the device is no GPU of CUDA.
    """
    if device.type != "cuda":
        raise ValueError(f"`cuda_graphs` must be False on the device {device.type}, but is True.")
    return CudaRecorder(device)


class _Captured(NamedTuple):
    batches: list[Batch]
    play: Callable[[], Outcome]


class UpdateGraphs:
    """Makes updates, from a graph where one of these shapes was captured.

    A shape is captured when it comes for the second time: the first one is computed as without
    graphs, and makes what must be there before (the optimiser's state, workspaces).

    Args:
        compute: Makes an update.
        optimizer: Its learning rates become tensors, which `set_rate` sets.
        device: Where the model is.
        recorder: Records and plays.
        max_graphs: Most graphs to keep.
    """

    def __init__(
        self,
        compute: Compute,
        optimizer: Any,
        device: torch.device,
        recorder: Recorder,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self._compute, self._optimizer, self._device = compute, optimizer, device
        self._recorder, self._max_graphs = recorder, max_graphs
        self._divisor = torch.ones((), device=device)
        # Else torch warns that a step is made without a graph, as the first of each shape is.
        inner = getattr(optimizer, "optimizer", optimizer)
        inner._warned_capturable_if_run_uncaptured = True
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._captured: dict[tuple[Any, ...], _Captured] = {}

    def __len__(self) -> int:
        return len(self._captured)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next update, also of those that are captured."""
        for group in self._optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                # float64 would be read as what it is not by a kernel of float32.
                group["lr"] = torch.zeros((), device=self._device)
                if "capturable" in group:
                    group["capturable"] = self._device.type == "cuda"
            group["lr"].fill_(rate)

    def update(self, group: Sequence[Batch], divisor: float) -> Outcome:
        """Make one update.

        Args:
            group: Its batches, on the host or the device.
            divisor: What the sum of their losses is divided by.

        Returns:
            Tensors that the next update leaves alone.
        """
        self._divisor.fill_(divisor)
        shapes = tuple(
            (name, tuple(x.shape)) for batch in group for name, x in batch.inputs.items()
        )
        captured = self._captured.get(shapes)
        if captured is None:
            self._seen[shapes] += 1
            if self._seen[shapes] == 1 or len(self._captured) >= self._max_graphs:
                moved = [batch.to(self._device) for batch in group]
                return self._recorder.aside(lambda: self._compute(moved, self._divisor))
            captured = self._captured[shapes] = self._capture(group)
        for batch, kept in zip(group, captured.batches, strict=True):
            for name, x in batch.to(self._device).inputs.items():
                kept.inputs[name].copy_(x, non_blocking=True)
        nats, norm = captured.play()
        return Outcome([x.clone() for x in nats], norm.clone())

    def _capture(self, group: Sequence[Batch]) -> _Captured:
        kept = [
            replace(
                batch, inputs={k: x.to(self._device, copy=True) for k, x in batch.inputs.items()}
            )
            for batch in group
        ]
        return _Captured(kept, self._recorder.record(lambda: self._compute(kept, self._divisor)))
