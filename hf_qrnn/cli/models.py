"""The command `hf-qrnn models`, and the names of its models wherever a command takes MODEL."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_qrnn.data.box import box_names, describe, find_in_box, locate

if TYPE_CHECKING:
    from hf_qrnn.data.box import BoxModel

TRANSLATOR = "de-en"
"""The model that translates where none is named."""
_MODELS_TEXT = """\
List the models in the box, which come with the package: their task, size on disk, scores and
licence. Each can stand by its name wherever a command takes MODEL; a folder of that name in the
working directory goes first."""


def add_models(commands: Any) -> None:
    """Add `models` to the commands of a parser."""
    parser = commands.add_parser(
        "models", help="list the models in the box", description=_MODELS_TEXT
    )
    parser.set_defaults(run=_models)
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def model_name(name: str) -> str:
    """Return what a command loads for the MODEL that a user typed: the `type` of an argument."""
    own = find_in_box(name)
    if own is not None and os.path.exists(name) and not os.path.samefile(name, own):
        print(
            f"'{name}' is what lies in the working directory, not the model of that name in the "
            "box",
            file=sys.stderr,
        )
    return locate(name)


def default_models(given: list[str]) -> list[str]:
    """Return the models that a user named, or else the box's translator.

    Raises:
        ValueError: If none is named and the box has no translator.
    """
    if given:
        return given
    own = find_in_box(TRANSLATOR)
    if own is None:
        there = ", ".join(box_names()) or "none"
        raise ValueError(
            f"`MODEL` must be given where '{TRANSLATOR}' is not in the box of models (there is: "
            f"{there})."
        )
    return [str(own)]


def scores_of(model: BoxModel) -> str:
    """Write the scores of a model with what was scored, or a dash."""
    from hf_qrnn.metrics.table import BY_NAME

    known = {metric.hub_name: metric for metric in BY_NAME.values()} | BY_NAME
    written = [
        f"{known[name].label} {known[name].scale * value:.1f}{' %' if known[name].of else ''}"
        for name, value in model.scores.items()
        if name in known
    ]
    return f"{', '.join(written)} ({model.scored_on})" if written else "-"


def fields_of(model: BoxModel) -> dict[str, Any]:
    """Return what is said of a model, for JSON."""
    return {
        "name": model.name,
        "task": model.task,
        "languages": list(model.languages),
        "bytes": model.num_bytes,
        "scores": dict(model.scores),
        "scored_on": model.scored_on,
        "license": model.license,
        "folder": str(model.folder),
    }


def _models(args: argparse.Namespace) -> None:
    found, faults = [], []
    for name in box_names():
        folder = find_in_box(name)
        assert folder is not None, "its name was found there"
        try:
            # By the name that a command takes, which may be that of a link.
            found.append(replace(describe(folder), name=name))
        except ValueError as error:  # of one model: the others are listed
            faults.append(f"'{name}' is damaged: {error}")
    if found or not faults:
        _list(found, args)
    if faults:
        raise ValueError(f"The models in the box must be whole, but {' And '.join(faults)}")


def _list(found: list[BoxModel], args: argparse.Namespace) -> None:
    """Print models as a table or as JSON."""
    if args.json:
        import json

        print(json.dumps([fields_of(model) for model in found], indent=2))
        return
    if not found:
        print("there is no model in the box", file=sys.stderr)
        return
    head = ("name", "task", "size", "licence", "scores")
    rows = [head, *(_row(model) for model in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(model: BoxModel) -> tuple[str, ...]:
    task = f"{model.task} {'-'.join(model.languages)}".rstrip()
    return model.name, task, f"{model.num_bytes / 1e6:.1f} MB", model.license, scores_of(model)
