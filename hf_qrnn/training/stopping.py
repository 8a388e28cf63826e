"""Reasons to stop before the budget is used: a signal, or a loss that diverges."""

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
    """Run a script's work; the status its process must end with, the reason told in a sentence.

    What all processes of a run know is told by the first alone.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    with Signals(raising=True) as signals:
        try:
            error = _error_of(run)
            signals.is_deaf = True
            if error is None:
                return 0
            if isinstance(error, (InterruptionError, DivergenceError)):
                if is_first:
                    print(f"stopped: {error}", file=sys.stderr)
                return EXIT_DIVERGED if isinstance(error, DivergenceError) else EXIT_INTERRUPTED
            if is_first or not isinstance(error, RunError):
                print(f"error: {error}", file=sys.stderr)
            return EXIT_MISTAKE
        finally:
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()


def _error_of(run: Callable[[], None]) -> Exception | None:
    try:
        run()
    except KeyboardInterrupt:
        return InterruptionError(None, None)
    except (InterruptionError, DivergenceError, ValueError, TypeError, OSError) as error:
        return error
    return None


def end_process(main: Callable[[], int]) -> NoReturn:
    """End the process with the status of `main`, whatever signals come while it ends."""
    Signals().__enter__()
    status = main()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # Python itself leaves this in place to the end
    sys.exit(status)


class InterruptionError(Exception):
    """A signal ended training after a checkpoint was saved, or the script outside of it.

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
    """The loss or the gradient is no longer a number to go on with."""


class Signals:
    """Hears SIGTERM and SIGINT while it is entered, instead of dying of them.

    One entered inside another hears them first, and makes the outer one deaf where it heard any:
    what it began is not to be interrupted by a second signal.

    Args:
        raising: Raise KeyboardInterrupt at each signal until `is_deaf`; else only remember it.
    """

    def __init__(self, *, raising: bool = False) -> None:
        self.received, self.is_deaf = False, False
        self._raising, self._process = raising, os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
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
class Trouble:
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
class Watch:
    """Looks at the loss and gradient of every update, when asked to.

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
        """Remember an update without reading its tensors, which would wait for a GPU."""
        self._seen.append((step, indices, nats, tokens, grad_norm))

    def look(self) -> Trouble | None:
        """The first update since the last look that diverged, or None."""
        seen, self._seen = self._seen, []
        for step, indices, nats, tokens, grad_norm in seen:
            loss, norm = float(nats) / max(1, tokens), float(grad_norm)
            if not (loss <= self.limit and math.isfinite(loss) and math.isfinite(norm)):
                return Trouble(step, loss, norm, list(indices))
        return None


def diverged(
    troubles: Sequence[Trouble | None], limit: float, last: Path | None
) -> DivergenceError:
    """The error that names what every process saw."""
    found = [trouble for trouble in troubles if trouble is not None]
    first = min(found, key=lambda trouble: trouble.step)
    indices = sorted(
        index for trouble in found if trouble.step == first.step for index in trouble.indices
    )
    shown = ", ".join(map(str, indices[:16])) + (" ..." if len(indices) > 16 else "")
    return DivergenceError(
        f"the loss must be finite and at most {limit:.4g} nats a token, but is {first.loss:.4g} "
        f"at update {first.step} (gradient norm {first.grad_norm:.4g}, training pairs {shown}); "
        f"{last_good(last)}."
    )


def last_good(path: Path | None) -> str:
    """Where to go on from, for the end of a sentence."""
    return f"the last good checkpoint is '{path}'" if path else "there is no checkpoint"
