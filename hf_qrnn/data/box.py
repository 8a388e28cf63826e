"""The models in the box: those that come with the package, known by the names of their folders.

A clone has them in `models/`, beside the package; a wheel has them inside it. Nothing here needs
torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .json_files import read_json, read_text

_PACKAGE = Path(__file__).resolve().parents[1]
# No path and no name of a user's on the Hub is one of ours.
_NAME = re.compile(r"\w[\w.-]*")
_CARD = re.compile(r"---\r?\n(.*?)^---\r?$", re.DOTALL | re.MULTILINE)
NOT_STATED = "not stated"


@dataclass(frozen=True)
class BoxModel:
    """A model as its folder describes it.

    Attributes:
        name: The folder's name.
        folder: Its place.
        task: "translation", "pronunciation", or what the card calls it.
        languages: Codes of the card, source first.
        num_bytes: Of all files of the folder.
        scores: Values by the metrics' names, as the card has them, or else those of the sample.
        scored_on: What was scored.
        license: The licence of the weights.
    """

    name: str
    folder: Path
    task: str
    languages: tuple[str, ...]
    num_bytes: int
    scores: Mapping[str, float]
    scored_on: str
    license: str


def box_folder() -> Path | None:
    """Find the folder that holds the models; None where there is none."""
    inside, root = _PACKAGE / "models", _PACKAGE.parent
    if inside.is_dir():
        return inside
    # Beside an installed package lie the folders of others.
    is_clone = (root / "pyproject.toml").is_file() and (root / "models").is_dir()
    return root / "models" if is_clone else None


def find_in_box(name: str) -> Path | None:
    """Find the folder of the model in the box that is called `name`."""
    box = box_folder()
    if box is None or not _NAME.fullmatch(name):
        return None
    return box / name if (box / name / "config.json").is_file() else None


def locate(name: str) -> str:
    """Return the folder of the model in the box for its name.

    The path of what is there goes first and is returned as it is, as every other name is.
    """
    own = None if Path(name).exists() else find_in_box(name)
    return name if own is None else str(own)


def box_names() -> list[str]:
    """List the names of the models in the box, sorted."""
    box = box_folder()
    return [] if box is None else sorted(path.parent.name for path in box.glob("*/config.json"))


def describe(folder: Path) -> BoxModel:
    """Read what a saved model's folder says of itself, in its card and its records.

    Raises:
        ValueError: If a file is damaged.
    """
    card = _front_matter(folder / "README.md")
    scores, scored_on = _card_scores(card) or _sample_scores(folder)
    return BoxModel(
        name=folder.resolve().name,
        folder=folder,
        task=_task(folder, card),
        languages=tuple(map(str, _items(card.get("language")))),
        num_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        scores=scores,
        scored_on=scored_on,
        license=str(card.get("license") or NOT_STATED),
    )


def _front_matter(path: Path) -> dict[str, Any]:
    """Read the YAML at the head of a card; {} where there is none."""
    found = _CARD.match(read_text(path)) if path.is_file() else None
    if found is None:
        return {}
    import yaml

    try:
        fields = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ValueError(f"The head of '{path}' must be YAML, but is not.") from error
    return fields if isinstance(fields, dict) else {}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _task(folder: Path, card: Mapping[str, Any]) -> str:
    # What is written in symbols between blanks is spoken; the Hub has no name for it.
    path = folder / "tokenizer_config.json"
    if path.is_file() and read_json(path).get("target_tokens") == "blank":
        return "pronunciation"
    return str(card.get("pipeline_tag") or NOT_STATED)


def _card_scores(card: Mapping[str, Any]) -> tuple[dict[str, float], str] | None:
    """Take the scores of the first data set in the card's head, as the Hub's form has them."""
    try:
        results = card["model-index"][0]["results"]
        dataset = str(results[0]["dataset"]["name"])
        scores = {
            str(metric["type"]): float(metric["value"])
            for result in results
            if result["dataset"]["name"] == dataset
            for metric in result["metrics"]
        }
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return scores, dataset


def _sample_scores(folder: Path) -> tuple[dict[str, float], str]:
    path = folder / "sample.json"
    if not path.is_file():
        return {}, ""
    fields = read_json(path)
    lines = fields.get("lines", 0)
    scores = {
        name: float(value)
        for name, value in fields.items()
        if type(value) is float and not name.endswith("_margin")
    }
    return scores, f"{lines} lines of its sample"
