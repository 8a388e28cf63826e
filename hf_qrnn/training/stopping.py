"""Stops a run before its budget is used: at a signal, or where the loss diverges."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from .checkpoint import RunError

EXIT_MISTAKE = 2
"""Status after a user's mistake, or a checkpoint that cannot be written or read."""
EXIT_DIVERGED = 3
"""Status after a loss that was not finite or exploded."""
EXIT_INTERRUPTED = 75
"""Status after SIGTERM or SIGINT: what was done is saved; run again with --resume auto."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def exit_status(run: Callable[[], None]) -> int:
    """Run a script's work, print why it stopped, and return the status for its process.

    What all processes of a run know is printed by the first alone.
    """
    # The rank of the environment: the work may fail before there is a process group.
    is_first = os.environ.get("RANK", "0") == "0"
    with Signals(raising=True) as signals:
        try:
            error = _error_of(run)
            # The work is over: a signal from here on would only replace its status.
            signals.is_deaf = True
            if error is None:
                return 0
            if isinstance(error, (InterruptionError, DivergenceError)):
                if is_first:
                    print(f"stopped: {error}", file=sys.stderr)
                return EXIT_DIVERGED if isinstance(error, DivergenceError) else EXIT_INTERRUPTED
            # Other errors than RunError may be of this process alone.
            if is_first or not isinstance(error, RunError):
                print(f"error: {error}", file=sys.stderr)
            return EXIT_MISTAKE
        finally:
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()


def _error_of(run: Callable[[], None]) -> Exception | None:
    """Return what a user is told in a sentence; any other error is a fault of ours and passes."""
    try:
        run()
    except KeyboardInterrupt:
        return InterruptionError(None, None)
    except (InterruptionError, DivergenceError, ValueError, TypeError, OSError) as error:
        return error
    return None


def end_process(main: Callable[[], int]) -> NoReturn:
    """End the process with the status of `main`, whatever signals come while it ends."""
    # Never left: a signal between `main` and the exit would end the process with its own status.
    Signals().__enter__()
    status = main()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # Python itself leaves this in place to the end
    sys.exit(status)


class InterruptionError(Exception):
    """The end by a signal: of training, after a checkpoint was saved, or of the script around it.

    Args:
        step: The last update; None outside of training.
        path: The newest checkpoint.
    """

    def __init__(self, step: int | None, path: Path | None) -> None:
        where = (
            f"continue from '{path}' with --resume auto" if path else "no checkpoint was asked for"
        )
        if step is None:
            where = "no update was under way, what was saved stays; go on with --resume auto"
        moment = "interrupted" if step is None else f"interrupted after update {step}"
        super().__init__(f"{moment}: {where}.")
        self.step, self.path = step, path


class DivergenceError(Exception):
    """A loss or gradient that is not finite, or a loss above the limit."""


class Signals:
    """A context manager that records SIGTERM and SIGINT instead of letting them end the process.

    One entered inside another gets them first. If it got any, it makes the outer one deaf when it
    ends: a second signal must not interrupt what the first one began.

    Args:
        raising: Raise KeyboardInterrupt at each signal until `is_deaf`; else only remember it.
    """

    def __init__(self, *, raising: bool = False) -> None:
        self.received, self.is_deaf = False, False
        self._raising, self._process = raising, os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Python lets no other thread set a handler.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # The handler of a `Signals` around this one is its bound method `_hear`.
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Signals):
                outer.is_deaf = outer.is_deaf or self.received
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._raising:
            self.received = True
        elif os.getpid() != self._process:  # a forked worker, which its pool must be able to end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.is_deaf:
            self.received = True
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Divergence:
    """The first update that diverged.

    Attributes:
        step: The update, from 1.
        loss: Nats per target token of this process's share.
        grad_norm: Norm of the gradient before it was rescaled.
        indices: The training examples of this process's share.
    """

    step: int
    loss: float
    grad_norm: float
    indices: list[int]


@dataclass
class DivergenceWatch:
    """A record of the loss and gradient of every update, until `check` reads them.

    Args:
        limit: The largest loss, in nats per target token; infinity = any finite one.
    """

    limit: float
    _seen: list[tuple[int, Sequence[int], torch.Tensor, int, torch.Tensor]] = field(
        default_factory=list
    )

    def add(
        self,
        step: int,
        indices: Sequence[int],
        nats: torch.Tensor,
        tokens: int,
        grad_norm: torch.Tensor,
    ) -> None:
        """Remember an update without reading its tensors, which would wait for a GPU.

        Args:
            step: The update, from 1.
            indices: The training examples of this process's share.
            nats: Their summed loss.
            tokens: Their target tokens.
            grad_norm: Norm of the gradient before it was rescaled.
        """
        self._seen.append((step, indices, nats, tokens, grad_norm))

    def check(self) -> Divergence | None:
        """Find the first update since the last check that diverged, or None."""
        seen, self._seen = self._seen, []
        numbers = _read([number for update in seen for number in (update[2], update[4])])
        for (step, indices, _, tokens, _), nats, norm in zip(
            seen, numbers[::2], numbers[1::2], strict=True
        ):
            # A process whose batches were fillers has no tokens, and a loss of 0.
            loss = nats / max(1, tokens)
            # `not <=` rather than `>`, which is False for NaN; infinity is within a limit of it.
            if not (loss <= self.limit and math.isfinite(loss) and math.isfinite(norm)):
                return Divergence(step, loss, norm, list(indices))
        return None


def _read(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Read numbers, those of a GPU all at once: each reading waits for it."""
    # A norm that is spread over processes cannot be made a part of another tensor.
    if not tensors or any(type(x) is not torch.Tensor for x in tensors):
        return [float(x) for x in tensors]
    # A loss of fillers alone is on the CPU.
    device = next((x.device for x in tensors if x.device.type != "cpu"), tensors[0].device)
    kind = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    found: list[float] = torch.stack([x.to(device, kind) for x in tensors]).tolist()
    return found


def divergence_error(
    divergences: Sequence[Divergence | None], limit: float, last: Path | None
) -> DivergenceError:
    """Make the error of a run whose processes saw `divergences`.

    Args:
        divergences: The first one of each process, by rank; None where it saw none.
        limit: The largest loss, in nats per target token.
        last: The newest checkpoint.
    """
    found = [divergence for divergence in divergences if divergence is not None]
    first = min(found, key=lambda divergence: divergence.step)
    # The gradient is the sum over processes: the example at fault may be in any one's share.
    indices = sorted(
        index for other in found if other.step == first.step for index in other.indices
    )
    shown = ", ".join(map(str, indices[:16])) + (" ..." if len(indices) > 16 else "")
    return DivergenceError(
        f"the loss must be finite and at most {limit:.4g} nats a token, but is {first.loss:.4g} "
        f"at update {first.step} (gradient norm {first.grad_norm:.4g}, training pairs {shown}); "
        f"{last_good(last)}."
    )


def last_good(path: Path | None) -> str:
    """Say from where to go on, for the end of a sentence."""
    return f"the last good checkpoint is '{path}'" if path else "there is no checkpoint"
