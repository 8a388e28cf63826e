"""The steps of `scripts/gpu_check.py`: their order, their seconds and where they are written.

Standard library only: whatever is broken on the machine, the plan can be read and run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

Record = dict[str, Any]


class SkippedError(Exception):
    """A step cannot run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """The surroundings of every step.

    Attributes:
        out: Folder of the results.
        carried: Folder of what was made elsewhere: the library, data, wheels.
        work: Folder of what nobody wants back: weights and text of the training runs.
        dry: Whether the CPU stands in for the GPU, with tiny shapes.
    """

    out: Path
    carried: Path
    work: Path
    dry: bool = False

    @property
    def device(self) -> str:
        """The device that is measured."""
        return "cpu" if self.dry else "cuda"

    @property
    def seconds(self) -> float:
        """Seconds for a figure; five rounds are measured at least."""
        return 0.0 if self.dry else 0.05


class Step(NamedTuple):
    """A step.

    Attributes:
        letter: The group that it is part of: its records are lines of `gpu_<letter>.jsonl`.
        limit: Seconds after which it is killed.
        place: `module:function` inside this package; the function yields records.
    """

    letter: str
    limit: int
    place: str

    def function(self) -> Callable[[Setting], Iterator[Record]]:
        """Import the function: only now, so that what one step lacks stops no other."""
        module, _, name = self.place.partition(":")
        found: Callable[[Setting], Iterator[Record]] = getattr(
            importlib.import_module(f"{__package__}.{module}"), name
        )
        return found


GROUPS = {
    "a": "it runs, and its values are right",
    "b": "pooling beside the copy rate",
    "c": "layers beside cuDNN and other packages",
    "d": "training",
    "e": "generation",
    "f": "sanitizers, profile, tests",
}
# The most valuable first: whatever ends a call early, what came before it is written.
STEPS = {
    "environment": Step("a", 20, "machine:environment"),
    "library": Step("a", 15, "machine:library"),
    "build": Step("a", 60, "machine:build"),
    "values": Step("a", 30, "values:values"),
    "triton": Step("a", 25, "values:triton"),
    "pooling": Step("b", 45, "pooling:pooling"),
    "forms": Step("b", 30, "pooling:forms"),
    "registers": Step("b", 5, "pooling:registers"),
    "layer": Step("c", 60, "layers:layers"),
    "peers": Step("c", 20, "layers:peers"),
    "modern": Step("d", 115, "training:modern"),
    "graphs": Step("d", 35, "training:graphs"),
    "paper": Step("d", 40, "training:paper"),
    "lstm": Step("d", 35, "training:lstm"),
    "generation": Step("e", 40, "generation:generation"),
    "hard_cases": Step("f", 35, "values:hard_cases"),
    "connect": Step("f", 20, "values:connections"),
    "memcheck": Step("f", 30, "tools:memcheck"),
    "racecheck": Step("f", 30, "tools:racecheck"),
    "initcheck": Step("f", 20, "tools:initcheck"),
    "synccheck": Step("f", 20, "tools:synccheck"),
    "profile": Step("f", 20, "tools:profile"),
    "pytest": Step("f", 30, "tools:gpu_tests"),
}
# Steps of no call: what the tools watch.
WATCHED = {"smoke": Step("f", 60, "values:smoke")}
CALLS = {1: "abc", 2: "def"}


def steps_of(call: int | None) -> list[str]:
    """Name the steps of a call, all of them for None."""
    letters = "".join(CALLS.values()) if call is None else CALLS[call]
    return [name for name, step in STEPS.items() if step.letter in letters]


def records_path(out: Path, name: str) -> Path:
    """Return the file that a step's records go to."""
    return out / f"gpu_{(STEPS | WATCHED)[name].letter}.jsonl"
