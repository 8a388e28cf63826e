"""Accumulates losses, token counts and padding between two lines of the training log."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_qrnn.data.batching import Batch

from .processes import Processes


@dataclass
class Meter:
    """The sums since the last line of the log, of this process.

    Attributes:
        seconds: Time of training alone, added by the trainer.
        nats: Summed loss of all target tokens; may lie on a GPU that is still busy.
        source_tokens: Source tokens, without padding.
        target_tokens: Target tokens, without padding.
        real: Tokens of both sides, without padding.
        padded: The same with padding.
        grad_norm: Norm of the last gradient before it was rescaled; as `nats`.
        learning_rate: Learning rate of the last update.
    """

    seconds: float = 0.0
    # float64, and a tensor: reading a number after every batch would wait for a GPU.
    nats: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    source_tokens: int = 0
    target_tokens: int = 0
    real: int = 0
    padded: int = 0
    grad_norm: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    learning_rate: float = 0.0

    def add(self, batch: Batch, nats: torch.Tensor) -> None:
        """Count a batch and its loss; a filler counts nothing."""
        if batch.is_filler:
            return
        kind = torch.float32 if nats.device.type == "mps" else torch.float64  # mps has no float64
        self.nats = self.nats.to(nats.device, kind) + nats.to(kind)
        self.source_tokens += batch.num_source_tokens
        self.target_tokens += batch.num_target_tokens
        self.real += batch.num_source_tokens + batch.num_target_tokens
        self.padded += batch.inputs["input_ids"].numel() + batch.inputs["labels"].numel()

    def record(self, processes: Processes, chars_per_token: tuple[float, float]) -> dict[str, Any]:
        """Compute the rates of a line of the log, over all processes.

        Args:
            processes: All of them call this together.
            chars_per_token: Source and target characters per token; 0 where there are none.
        """
        source, target = chars_per_token
        # The sums are in float64, in which the counts stay exact. Reading `nats` waits for a GPU.
        sums = (self.nats, self.source_tokens, self.target_tokens, self.real, self.padded)
        nats, source_tokens, target_tokens, real, padded = processes.sum(
            [float(value) for value in sums]
        )
        loss = nats / max(1, target_tokens)
        # An estimate by the mean of the whole data: the batches hold ids, no characters.
        characters = source * source_tokens + target * target_tokens
        return {
            "loss": loss,
            # Nats per token, over ln 2: bits per token; over the characters of a token.
            **({"bits_per_char": loss / math.log(2) / target} if target else {}),
            "learning_rate": self.learning_rate,
            "grad_norm": float(self.grad_norm),
            "chars_per_second": characters / max(1e-9, self.seconds),
            "padding": 1.0 - real / max(1, padded),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, for the line after a resume to be the same."""
        # Norm and rate are those of the last update before a line, which comes after the resume.
        names = ("seconds", "source_tokens", "target_tokens", "real", "padded")
        return {"nats": float(self.nats), **{name: getattr(self, name) for name in names}}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Meter:
        """Make the meter that `to_dict` described."""
        nats = torch.tensor(content["nats"], dtype=torch.float64)
        return cls(**{**content, "nats": nats})


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process has held, of the GPU's memory or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
