"""Checkpoints of a training run: whole or not there, checked, and never pickled.

checkpoints/step-00000020/
    model.safetensors  optimizer.safetensors  random.safetensors    tensors
    state.json                                                      everything else
    complete.json                                                   size and SHA-256 of each file

A checkpoint is written aside, its marker `complete.json` last, every file and folder is flushed to
the disk, and a rename puts it in place. So whatever has a marker is whole, at any moment of a kill.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .best import Standing, is_same_order

FORMAT = 1
MARKER = "complete.json"
_STATE = "state.json"
_UNFINISHED, _DELETED = ".writing-", ".deleting-"
_NAME = re.compile(r"step-\d+")

logger = logging.getLogger(__name__)


class RunError(OSError):
    """An error that ends a run on all of its processes; the first alone prints it."""


class CheckpointError(RunError):
    """A checkpoint that could not be written, or is not as it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: Its folder.
        tensors: Tensors by name, by group ("model", "optimizer", "random"), on the CPU.
        state: Everything else.
    """

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of a run, written by its main process alone.

    Args:
        path: The folder; made with the first checkpoint.
        keep_last: Number of the newest that stay, at least 1.
        keep_best: Number of the best by score that stay too. Equal scores are ordered by the loss;
            of equal losses the earlier is better.

    Attributes:
        best_by: The order of the scores (best.py). A score of another order counts as none.
    """

    def __init__(self, path: Path, *, keep_last: int = 2, keep_best: int = 1) -> None:
        for name, value, bound in (("keep_last", keep_last, 1), ("keep_best", keep_best, 0)):
            if value < bound:
                raise ValueError(f"`{name}` must be at least {bound}, but is {value}.")
        self.path, self.keep_last, self.keep_best = path, keep_last, keep_best
        self.best_by = ""

    def complete(self) -> list[Path]:
        """List the folders of whole checkpoints, oldest first."""
        # A user's copy, as step-00000020-good, is not ours to use or delete.
        found = [path.parent for path in self.path.glob(f"step-*/{MARKER}")]
        return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_step)

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, or None."""
        return next(reversed(self.complete()), None)

    def best(self, count: int) -> list[Path]:
        """List at most `count` checkpoints that have a score, best first."""
        # The sort is stable, also in reverse: of equal ranks the older stays in front.
        return sorted(ranks := self._ranks(), key=ranks.__getitem__, reverse=True)[:count]

    def _ranks(self) -> dict[Path, tuple[float, float]]:
        """Return the ranks of whole checkpoints that have a score in our order, oldest first."""
        ranks = {}
        for path, marker in self._markers().items():
            standing = self._standing(marker)
            if standing is not None:
                ranks[path] = standing.rank
        return ranks

    def _markers(self) -> dict[Path, dict[str, Any]]:
        """Read the markers of whole checkpoints, oldest first.

        A damaged one is left out, and its folder is never deleted: nobody can tell what it is.
        """
        markers = {}
        for path in self.complete():
            try:
                markers[path] = read_marker(path)
            except CheckpointError as error:
                logger.warning("neither used nor deleted: %s", error)
        return markers

    def is_among_best(self, score: float, loss: float | None = None) -> bool:
        """Tell whether a checkpoint of this score and loss would be kept for them."""
        best = self.best(self.keep_best)
        return self.keep_best > 0 and (
            len(best) < self.keep_best or Standing(score, loss).rank > self._ranks()[best[-1]]
        )

    def _standing(self, marker: Mapping[str, Any]) -> Standing | None:
        """Return the standing of a marker's checkpoint, or None without a score in our order."""
        score, by = marker["score"], marker.get("best_by", "")
        if score is None or not is_same_order(by, score, self.best_by):
            return None
        return Standing(score, marker.get("loss"))

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
        *,
        score: float | None = None,
        loss: float | None = None,
    ) -> Path:
        """Write a checkpoint, whole or not at all, then delete those that need not stay.

        Args:
            step: Updates made; names the checkpoint, and replaces one of the same name.
            tensors: Tensors by name, by group.
            state: What JSON can hold.
            score: Validation score of these weights, higher is better; None = not validated.
            loss: Their validation loss.

        Raises:
            CheckpointError: If it cannot be written; the others are untouched.
        """
        final = self.path / f"step-{step:08d}"
        # In the same folder, so that the rename stays within one file system.
        aside = self.path / f"{_UNFINISHED}{final.name}"
        try:
            # First what a kill left half written: it may be of the same name, and takes space.
            self._clean()
            aside.mkdir(parents=True)
            for group, content in tensors.items():
                save_file(dict(content), aside / f"{group}.safetensors")
            _write_json(aside / _STATE, {"format": FORMAT, **state})
            files = {path.name: _describe(path) for path in sorted(aside.iterdir())}
            # All content before the marker that vouches for it, all files before the rename: a
            # power cut keeps what was flushed, and may keep later writes without earlier ones.
            for path in aside.iterdir():
                _flush(path)
            judged = {"score": score, "loss": loss, "best_by": self.best_by}
            _write_json(aside / MARKER, {"step": step, **judged, "files": files})
            _flush(aside / MARKER)
            _flush(aside)
            if final.exists():
                # A rename replaces no folder that has files.
                os.rename(final, self.path / f"{_DELETED}{final.name}")
            os.rename(aside, final)
            _flush(self.path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            last = self.newest()
            # The system's words alone: the path is in our sentence already.
            reason = error.strerror if isinstance(error, OSError) else None
            raise CheckpointError(
                f"the checkpoint of update {step} must be written to '{self.path}', but is not: "
                f"{reason or error}; "
                + (f"the last whole one is '{last}'." if last else "there is no earlier one.")
            ) from error
        self._prune()
        return final

    def set_aside(self, after: int = -1) -> Path | None:
        """Move checkpoints of more than `after` updates to a new folder beside this one.

        They are of a past that the run no longer has: it went on from an earlier checkpoint.

        Returns:
            That folder, or None where there was nothing to move.
        """
        self._clean()
        moved = [path for path in self.complete() if _step(path) > after]
        if not moved:
            return None
        beside = free_name(self.path)
        beside.mkdir()
        for path in moved:
            os.rename(path, beside / path.name)
        return beside

    def _prune(self) -> None:
        """Delete the checkpoints that are neither of the newest nor of the best."""
        # By their markers, so that a damaged one takes no place and is not deleted.
        paths = list(self._markers())
        kept = {*paths[-self.keep_last :], *self.best(self.keep_best)}
        for path in paths:
            if path not in kept:
                # Renamed first: a half deleted checkpoint must not look whole.
                os.rename(path, path.with_name(f"{_DELETED}{path.name}"))
        self._clean()

    def _clean(self) -> None:
        """Delete what a kill left half written or half deleted."""
        for prefix in (_UNFINISHED, _DELETED):
            for path in self.path.glob(f"{prefix}*"):
                shutil.rmtree(path)


def find_checkpoint(resume: str, folder: CheckpointFolder) -> Path | None:
    """Find the checkpoint that `--resume` names.

    Args:
        resume: "auto" is the newest of `folder`, "never" is none; else a path.
        folder: The checkpoints of this run.

    Raises:
        ValueError: If a path is neither a checkpoint nor a run's folder with one.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return folder.newest()
    path = Path(resume)
    if (path / MARKER).is_file():
        return path
    # The path may be the folder of checkpoints, or the run's folder around it.
    for inside in (path, path / folder.path.name):
        newest = CheckpointFolder(inside).newest()
        if newest is not None:
            return newest
    raise ValueError(
        "`resume` must be auto, never, a checkpoint or a run's folder that holds one, "
        f"but is '{resume}'."
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with its size and SHA-256.

    Raises:
        CheckpointError: If a file is missing, truncated or altered (names it).
    """
    # All of them before anything is loaded: a run is restored whole or not at all.
    for name, expected in read_marker(path)["files"].items():
        _compare(path / name, expected)
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    if state.pop("format") != FORMAT:
        raise CheckpointError(f"'{path}' must be of format {FORMAT}, but is of another version.")
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return Checkpoint(path, tensors, state)


def read_marker(path: Path) -> dict[str, Any]:
    """Read the step, score and files of a whole checkpoint.

    Raises:
        CheckpointError: If the marker is missing or damaged.
    """
    try:
        marker: dict[str, Any] = json.loads((path / MARKER).read_text(encoding="utf-8"))
        if not (isinstance(marker, dict) and marker.keys() >= {"step", "score", "files"}):
            raise ValueError("an entry is missing")
        kinds: dict[str, Any] = {"step": int, "score": (int, float, type(None)), "files": dict}
        for name, kind in kinds.items():
            if not isinstance(marker[name], kind):
                raise ValueError(f"{name!r} is {marker[name]!r}")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path / MARKER}' must be the marker of a whole checkpoint, but is not: {error}; "
            "remove this folder or resume from another by --resume PATH."
        ) from error
    return marker


def free_name(path: Path) -> Path:
    """Return the first of PATH.replaced, PATH.replaced-2 and so on that nothing has."""
    numbers = itertools.count(2)
    free = path.with_name(f"{path.name}.replaced")
    # `lexists`: a link that leads nowhere has its name too.
    while os.path.lexists(free):
        free = path.with_name(f"{path.name}.replaced-{next(numbers)}")
    return free


def average_weights(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Compute the mean of the weights of checkpoints, added in float64.

    Raises:
        CheckpointError: If a file is missing, truncated or altered.
        ValueError: If there is no checkpoint.
    """
    if not paths:
        raise ValueError("`paths` must hold at least one checkpoint, but is empty.")
    total: dict[str, torch.Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for path in paths:
        file = path / "model.safetensors"
        _compare(file, read_marker(path)["files"][file.name])
        for name, tensor in load_file(file).items():
            kinds[name] = tensor.dtype
            # Of one checkpoint, the mean is its weights to the bit: float64 rounds nothing away.
            total[name] = total.get(name, 0) + tensor.double()
    return {name: (tensor / len(paths)).to(kinds[name]) for name, tensor in total.items()}


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute the SHA-256 of tensors by name: equal if every bit, shape and type is."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, since numpy has no bfloat16.
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):  # 1 MiB at a time: a file may be larger than memory
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _compare(path: Path, expected: Mapping[str, Any]) -> None:
    # The size first: it tells a truncated file from an altered one, and costs nothing.
    if not path.is_file():
        fault = "is missing"
    elif path.stat().st_size != expected["bytes"]:
        fault = f"has {path.stat().st_size} bytes of {expected['bytes']}"
    elif _describe(path) != expected:
        fault = "was altered (its SHA-256 differs)"
    else:
        return
    raise CheckpointError(
        f"'{path}' must be as it was written, but {fault}; remove this folder or resume from "
        "another by --resume PATH."
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _flush(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
