"""The folder of a training run: what it was, how it went, and the best model.

run.json              options, data, versions, hardware
metrics.jsonl         one record a line, as training goes
training.json         how it ended
checkpoints/          what a resumed run goes on from (checkpoint.py)
learning_curve.png    drawn after every validation
config.json ...       the best model with its code and tokenizer, loadable by the Auto classes
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RunFolder:
    """Writes a run's files; does nothing on processes other than the main one.

    Args:
        path: The folder; made if missing. The metrics of an earlier run in it are replaced.
        is_main_process: Whether this process writes.
        draw_curve: Draws all records so far into the file it is given.
        resume_step: Keep the metrics of so many updates, for a resumed run to go on from there.
    """

    def __init__(
        self,
        path: Path,
        *,
        is_main_process: bool,
        draw_curve: Callable[[list[dict[str, Any]], Path], None],
        resume_step: int = 0,
    ) -> None:
        self.path, self.is_main_process = path, is_main_process
        self.draw_curve = draw_curve
        self.records: list[dict[str, Any]] = []
        if is_main_process:
            path.mkdir(parents=True, exist_ok=True)
            if resume_step > 0:
                self.records = _records_until(path / "metrics.jsonl", resume_step)
            write_lines(path / "metrics.jsonl", [json.dumps(record) for record in self.records])

    def describe(
        self,
        options: dict[str, Any],
        data: dict[str, Any],
        model: PreTrainedModel,
        device: torch.device,
        processes: str = "",
        metric: str = "",
    ) -> None:
        """Write run.json: what another person needs to repeat the run.

        Args:
            options: Every flag.
            data: Numbers about the data.
            model: The model.
            device: Where it is trained.
            processes: What there is of them, in a line.
            metric: What chooses the best model, whoever decided it.
        """
        modules = (torch, transformers, accelerate)
        description = {
            "command": shlex.join(sys.argv),
            "options": options,
            "metric": metric,
            "data": data,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {
                "hf_qrnn": version("hf_qrnn"),
                "python": platform.python_version(),
                **{module.__name__: module.__version__ for module in modules},
            },
            "hardware": {
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "machine": platform.machine(),
                "cpu_capability": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
                "processes": processes,
            },
        }
        self.write_json("run.json", description)

    def log(self, record: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl; draw the curve when it is a validation's."""
        self.records.append(record)
        if not self.is_main_process:
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if record["kind"] == "valid":
            self.draw_curve(self.records, self.path / "learning_curve.png")

    def save_model(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write model and tokenizer aside, then put them in place of the old ones file by file.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            weights: The model's weights, where its own are not whole because they are sharded.
        """
        if not self.is_main_process:
            return
        fresh = self.path / ".saving"
        shutil.rmtree(fresh, ignore_errors=True)
        model.save_pretrained(fresh, state_dict=weights)
        tokenizer.save_pretrained(fresh)
        for path in fresh.iterdir():
            os.replace(path, self.path / path.name)
        shutil.rmtree(fresh)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file at once."""
        if self.is_main_process:
            write_lines(self.path / name, [json.dumps(content, indent=2)])


def _records_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl up to an update; a line that a kill cut is left out."""
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step and record["kind"] != "average":
            records.append(record)
    return records


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Replace a text file at once, so that nobody reads half of it."""
    fresh = path.with_name(path.name + ".saving")
    fresh.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(fresh, path)
