"""The folder of a training run: its options, its records, its checkpoints and the best model.

run.json              options, data, versions, hardware
metrics.jsonl         one record a line, as training goes
training.json         how it ended
checkpoints/          what a resumed run goes on from (checkpoint.py)
.lock                 held while a run is under way (folder_lock.py)
learning_curve.png    drawn after every validation
config.json ...       the best model with its code and tokenizer, loadable by the Auto classes
"""

from __future__ import annotations

import filecmp
import json
import logging
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_qrnn.hub.files import may_be_shared

from .card_words import CardWords
from .checkpoint import CheckpointFolder, RunError, free_name, read_marker
from .folder_lock import FolderLock

_CONFIG, _METRICS, _BASE = "config.json", "metrics.jsonl", "base"
# Any of these, and a folder is in use: something of value would be replaced, or mixed with.
_SIGNS = (
    *(_CONFIG, "model.safetensors", "model.safetensors.index.json"),
    *("checkpoints", "training.json", _METRICS, "run.json", _BASE),
)
# What a run writes beside what a push shares.
_OWN = {
    "checkpoints", "training.json", "test.hypotheses.txt", "trackers", _BASE, "base.saving",
    ".saving",
}  # fmt: skip
_RECORDS = {"run.json", _METRICS, "learning_curve.png", "training.json"}

logger = logging.getLogger(__name__)


class RunFolder:
    """The writer of a run's files, which does nothing on processes other than the main one.

    Nothing is touched before `begin`.

    Args:
        path: The folder.
        is_main_process: Whether this process writes.
        draw_curve: Draws all records so far into the file it is given.
        may_be_used: Allow an earlier run in the folder, which is gone on with or moved aside.
    """

    def __init__(
        self,
        path: Path,
        *,
        is_main_process: bool,
        draw_curve: Callable[[list[dict[str, Any]], Path], None],
        may_be_used: bool = False,
    ) -> None:
        self.path, self.is_main_process = path, is_main_process
        self.draw_curve, self.may_be_used = draw_curve, may_be_used
        self.records: list[dict[str, Any]] = []
        self.lock = FolderLock(path)

    def check(self) -> None:
        """Find out whether a run may begin here; touch nothing.

        Raises:
            ValueError: If another process trains here, or an earlier run is here and may not be.
            OSError: If it is no folder, or nothing can be written.
        """
        if not self.is_main_process:
            return
        # The folder may still be to come: what counts is the nearest one above that is there.
        above = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not above.is_dir():
            raise NotADirectoryError(f"`output_dir` must be a folder, but '{above}' is a file.")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(f"`output_dir` must be writable, but '{above}' is not.")
        self.lock.check()
        found = next((name for name in _SIGNS if self._has(name)), None)
        if found is not None and not self.may_be_used:
            raise ValueError(
                f"`output_dir` must be new or empty, but '{self.path}' holds a run ('{found}'); go "
                "on with it by --resume auto, or move it aside by --overwrite_output_dir."
            )

    def begin(
        self,
        checkpoints: CheckpointFolder | None = None,
        *,
        resumed: Path | None = None,
        overwrite: bool = False,
    ) -> bool:
        """Take the folder for a run, and move aside what is not of the run's past.

        Args:
            checkpoints: The run's checkpoints in the folder.
            resumed: The checkpoint that the run goes on from, in this folder or another.
            overwrite: Move an earlier run aside even where it could be gone on with.

        Returns:
            True if the best model in the folder stays that of the run.

        Raises:
            ValueError: As for `check`.
            OSError: As for `check`; or if the earlier run cannot be moved.
        """
        if not self.is_main_process:
            return False
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        self.check()  # once more: a run may have come and gone meanwhile
        # Links are followed, since the same folder may be named in two ways.
        is_own = resumed is not None and resumed.resolve().is_relative_to(self.path.resolve())
        if resumed is None or checkpoints is None or overwrite or not is_own:
            self._make_room(overwrite)
            self.records = []
        else:
            # What came after this checkpoint will be made anew, and must not be there twice.
            step = int(read_marker(resumed)["step"])
            beside = checkpoints.set_aside(step)
            if beside is not None:
                logger.warning("moved the checkpoints after update %d to %s", step, beside)
            self.records = _records_until(self.path / _METRICS, step)
            # One in checkpoints.replaced is of another past, which had another best model.
            is_own = resumed.resolve().parent == checkpoints.path.resolve()
        write_lines(self.path / _METRICS, [json.dumps(record) for record in self.records])
        return is_own and not overwrite

    def _make_room(self, overwrite: bool) -> None:
        """Move an earlier run aside, unless all that it left is the log of a start."""
        found = [name for name in _SIGNS if self._has(name)]
        if not found:
            return
        # A run that ended before its first checkpoint leaves no other files, and nobody needs
        # these. But a folder of the user's may be called base too.
        is_start = _BASE not in found or (self.path / _BASE / "base.json").is_file()
        if not overwrite and is_start and set(found) <= {"run.json", _METRICS, _BASE}:
            shutil.rmtree(self.path / _BASE, ignore_errors=True)
            logger.info("%s has no checkpoint yet: training begins anew", self.path)
            return
        names = [path.name for path in self.path.iterdir() if _is_of_a_run(path.name)]
        beside = _move_aside(self.path.resolve(), names)
        logger.warning("moved the earlier run in %s to %s", self.path, beside)

    def _has(self, name: str) -> bool:
        path = self.path / name
        if path.is_dir():  # of checkpoints, which may be half written and hidden
            return any(not inside.name.startswith(".") for inside in path.iterdir())
        return path.exists()

    def describe(
        self,
        options: dict[str, Any],
        data: dict[str, Any],
        model: PreTrainedModel,
        device: torch.device,
        processes: str = "",
        metric: str = "",
        base: dict[str, Any] | None = None,
        words: CardWords | None = None,
    ) -> None:
        """Write run.json: what another person needs to repeat the run.

        Args:
            options: Every flag.
            data: Numbers about the data.
            model: The model.
            device: Where it is trained.
            processes: Their number and backend, in a line.
            metric: The metric that chooses the best model, whoever decided it.
            base: What the run began with, if not with random weights (`Base.record`).
            words: The words of the card that are the task's.
        """
        modules = (torch, transformers, accelerate)
        description = {
            "command": shlex.join(sys.argv),
            "options": options,
            "metric": metric,
            "data": data,
            **({} if base is None else {"base": base}),
            **({} if words is None else {"card": asdict(words)}),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {
                "hf_qrnn": own_version(),
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
        path = self.path / _METRICS
        with writing(path), path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
        if record["kind"] == "valid":
            with writing(self.path / "learning_curve.png"):
                self.draw_curve(self.records, self.path / "learning_curve.png")

    def save_model(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write model and tokenizer aside, then put them in place of the old ones.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            weights: The model's weights, where its own are not whole because they are sharded.

        Raises:
            RunError: If they cannot be written; the model before is as it was.
        """
        if not self.is_main_process:
            return
        fresh = self.path / ".saving"
        try:
            with writing(self.path / "model.safetensors"):
                shutil.rmtree(fresh, ignore_errors=True)
                # One file of weights: several could not be replaced at once.
                model.save_pretrained(fresh, state_dict=weights, max_shard_size=2**62)
                tokenizer.save_pretrained(fresh)
                # Only now, when the new model is whole: the old one stays until then.
                self._move_another_model(type(model.config), fresh)
                _put_in_place(fresh, self.path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _move_another_model(self, kind: type[PreTrainedConfig], fresh: Path) -> None:
        """Move a model of other sizes aside: earlier versions let it stay beside checkpoints."""
        if not (self.path / _CONFIG).exists():
            return
        new, old = kind.from_json_file(fresh / _CONFIG).to_dict(), {}
        # A config that cannot be read is of another model, too.
        with suppress(OSError, ValueError, TypeError):
            old = kind.from_json_file(self.path / _CONFIG).to_dict()
        free = {"transformers_version", "dtype", "auto_map"}  # no weight's shape depends on them
        if any(old.get(name) != new.get(name) for name in (old.keys() | new.keys()) - free):
            files = [path.name for path in self.path.iterdir() if path.is_file()]
            names = [name for name in files if _is_of_a_run(name) and name not in _RECORDS]
            beside = _move_aside(self.path.resolve(), names)
            logger.warning("moved another model in %s to %s", self.path, beside)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Replace a JSON file at once, so that nobody reads half of it."""
        if self.is_main_process:
            write_lines(self.path / name, [json.dumps(content, indent=2)])


def _is_of_a_run(name: str) -> bool:
    """Tell whether a run writes a file or folder of this name."""
    return (
        name in _OWN
        or name.startswith("checkpoints.replaced")
        # A push shares a licence, but the user wrote it.
        or (may_be_shared(name) and name != "LICENSE")
    )


def _move_aside(folder: Path, names: Sequence[str]) -> Path:
    """Move what a run left to FOLDER.replaced or, where that is taken, FOLDER.replaced-2 ...

    config.json goes first: without it the folder holds no model, rather than half of one. A kill
    leaves FOLDER.moving, which the next move takes with it.
    """
    moving = folder.with_name(f"{folder.name}.moving")
    beside = free_name(folder)
    try:
        # A name in both: what is there is of an older run, and must not be written over.
        if any((moving / name).exists() for name in names):
            os.rename(moving, free_name(folder))
            beside = free_name(folder)
        moving.mkdir(exist_ok=True)
        for name in sorted(names, key=lambda name: (name != _CONFIG, name)):
            os.rename(folder / name, moving / name)
        os.rename(moving, beside)
    except OSError as error:
        raise RunError(
            f"the earlier run in '{folder}' must be moved to '{beside}', but is not: "
            f"{error.strerror}; take another --output_dir."
        ) from error
    return beside


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Put a model's new files in place of the old ones, one after the other.

    At any moment the folder loads as before or as after. Files that are the same stay: within a run
    only the weights change, in one rename. The first time, and after another version of the code,
    there are more: config.json comes last where there is none, since nothing loads without it; the
    weights come last where there is one, since both are of the same sizes.
    """
    last = "model.safetensors" if (folder / _CONFIG).exists() else _CONFIG
    for path in sorted(fresh.iterdir(), key=lambda path: (path.name == last, path.name)):
        old = folder / path.name
        if not (old.is_file() and filecmp.cmp(path, old, shallow=False)):
            os.replace(path, old)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the disk inside into a RunError of one sentence that names `path`."""
    try:
        yield
    except RunError:
        raise
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise RunError(f"'{path}' must be written, but is not: {reason or error}.") from error
    except Exception as error:
        # `tokenizers`, which is in Rust, raises plain Exception, with the system's error as text.
        if "(os error " not in str(error):
            raise
        raise RunError(f"'{path}' must be written, but is not: {error}.") from error


def _records_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl up to an update; a line that a kill cut is left out."""
    records: list[dict[str, Any]] = []
    for line in (
        path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    ):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not (isinstance(record, dict) and record.keys() >= {"kind", "step"}):
            continue
        # The mean of checkpoints is tried once more at the end.
        if record["step"] <= step and record["kind"] != "average":
            records.append(record)
    return records


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Replace a text file at once, so that nobody reads half of it.

    Raises:
        RunError: If it cannot be written; the file before is as it was.
    """
    fresh = path.with_name(path.name + ".saving")
    with writing(path):
        try:
            fresh.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            os.replace(fresh, path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


def own_version() -> str:
    """Return the package's version, also where a clone runs without having been installed."""
    try:
        return version("hf_qrnn")
    except PackageNotFoundError:
        return "not installed"
