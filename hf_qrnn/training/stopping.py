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
from typing import Any

import torch
import torch.distributed as dist

from hf_qrnn.training.checkpoint import RunError

EXIT_MISTAKE = 2
"""Status after a user's mistake, or a checkpoint that cannot be written or read."""
EXIT_DIVERGED = 3
"""Status after a loss that was not finite or exploded."""
EXIT_INTERRUPTED = 75
"""Status after SIGTERM or SIGINT: a checkpoint is saved; run again with --resume auto."""


def exit_status(run: Callable[[], None]) -> int:
    """Run a script's work; the status its process must end with, the reason told in a sentence.

    What all processes of a run know is told by the first alone.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        run()
    except (InterruptionError, DivergenceError) as error:
        if is_first:
            print(f"stopped: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED if isinstance(error, InterruptionError) else EXIT_DIVERGED
    except (ValueError, TypeError, OSError) as error:
        if is_first or not isinstance(error, RunError):
            print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return 0


class InterruptionError(Exception):
    """A signal ended training after a checkpoint was saved."""

    def __init__(self, step: int, path: Path | None) -> None:
        where = (
            f"continue from '{path}' with --resume auto" if path else "no checkpoint was asked for"
        )
        super().__init__(f"interrupted after update {step}: {where}.")
        self.step, self.path = step, path


class DivergenceError(Exception):
    """The loss or the gradient is no longer a number to go on with."""


class Signals:
    """Remembers SIGTERM and SIGINT while it is entered, instead of dying of them."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True


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
