"""The folder of a training run: what it was, how it went, and the best model.

run.json              options, data, versions, hardware
metrics.jsonl         one record a line, as training goes
learning_curve.png    drawn after every validation
config.json ...       the best model with its code and tokenizer, loadable by the Auto classes
"""

from __future__ import annotations

import json
import os
import platform
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
    """

    def __init__(
        self,
        path: Path,
        *,
        is_main_process: bool,
        draw_curve: Callable[[list[dict[str, Any]], Path], None],
    ) -> None:
        self.path, self.is_main_process = path, is_main_process
        self.draw_curve = draw_curve
        self.records: list[dict[str, Any]] = []
        if is_main_process:
            path.mkdir(parents=True, exist_ok=True)
            write_lines(path / "metrics.jsonl", [])

    def describe(
        self,
        options: dict[str, Any],
        data: dict[str, Any],
        model: PreTrainedModel,
        device: torch.device,
    ) -> None:
        """Write run.json: what another person needs to repeat the run."""
        modules = (torch, transformers, accelerate)
        description = {
            "command": " ".join(sys.argv),
            "options": options,
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

    def save_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write model and tokenizer aside, then put them in place of the old ones file by file."""
        if not self.is_main_process:
            return
        fresh = self.path / ".saving"
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        for path in fresh.iterdir():
            os.replace(path, self.path / path.name)
        shutil.rmtree(fresh)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file at once."""
        if self.is_main_process:
            write_lines(self.path / name, [json.dumps(content, indent=2)])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Replace a text file at once, so that nobody reads half of it."""
    fresh = path.with_name(path.name + ".saving")
    fresh.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(fresh, path)
