"""Reads what a run wrote of itself, for its card; a damaged or foreign file is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_qrnn.data.json_files import read_json, read_json_lines
from hf_qrnn.metrics.table import RECORDED

from .card_words import CardWords

_KINDS: dict[str, tuple[type, ...]] = {
    "a text": (str,),
    "a number": (int, float),
    "a whole number": (int,),
    "an object": (dict,),
    "true or false": (bool,),
    "a list": (list,),
}
# What a card needs of each file; the rest may be missing, but not be of another kind.
_RUN = {"command": "a text", "options": "an object", "date": "a text", "hardware": "an object"}
_RUN_OPTIONAL = {
    "data": "an object", "versions": "an object", "parameters": "a whole number",
    "metric": "a text", "base": "an object", "card": "an object",
}  # fmt: skip
_CARD = {field.name: "a text" for field in fields(CardWords)} | {"limits": "a list"}
_BASE = {"init_from": "a text", "is_on_hub": "true or false", "new_characters": "a whole number"}
_HARDWARE = {
    "device": "a text", "machine": "a text", "cpu_capability": "a text",
    "threads": "a whole number",
}  # fmt: skip
_TEXT_OPTIONS = (
    "source_lang", "target_lang", "train_source", "train_target", "train_file", "dataset_name",
    "data_name", "data_license", "model_license", "card_title", "tokenizer", "hub_model_id",
    "output_dir", "language_tag",
)  # fmt: skip
_DATA = {
    "train": "a whole number", "valid": "a whole number", "test": "a whole number",
    "mean_source_chars": "a number", "mean_target_chars": "a number",
    "distinct_chars": "a whole number",
    "source_tokens": "a text", "target_tokens": "a text", "languages": "an object",
    "word_vectors": "an object",
}  # fmt: skip
_VECTORS = {
    "file": "a text", "found": "a whole number", "vocabulary": "a whole number",
    "share_of_tokens": "a number",
}  # fmt: skip
_INTERVAL = {"low": "a number", "high": "a number", "level": "a number", "method": "a text"}
_RECORD = {"kind": "a text", "step": "a whole number"}
_SCORES = {metric.name: "a number" for metric in RECORDED}
_RECORD_OPTIONAL = {"seconds": "a number", "chars_per_second": "a number", **_SCORES}
_VALID_RECORD = {"seconds": "a number", "loss": "a number"}
_TEST = {"sentences": "a whole number", "num_beams": "a whole number", "exact_match": "a number"}
_TRANSLATED = [metric.name for metric in RECORDED if metric.needs_translations]


def read_run(folder: Path) -> dict[str, Any]:
    """Read run.json of a folder; empty where there is none.

    Raises:
        ValueError: If it is damaged, or not as a training run writes it.
    """
    path = folder / "run.json"
    run = read_json(path) if path.is_file() else {}
    if run:
        _check(path.name, run, _RUN, _RUN_OPTIONAL)
        _check(path.name, run["hardware"], _HARDWARE)
        options = dict.fromkeys(_TEXT_OPTIONS, "a text")
        _check(path.name, run["options"], {"seed": "a whole number"}, options)
        data = run.get("data") or {}
        _check(path.name, data, {}, _DATA)
        if data.get("word_vectors"):
            _check(path.name, data["word_vectors"], _VECTORS)
        languages = data.get("languages") or {}
        _check(path.name, languages, dict.fromkeys(languages, "a whole number"))
        _check(path.name, run.get("card") or {}, {}, _CARD)
        if run.get("base") is not None:
            _check(path.name, run["base"], _BASE)
    return run


def read_base(folder: Path) -> dict[str, Any]:
    """Read base.json of a run's base/: what the run began with.

    Raises:
        ValueError: If it is missing, damaged, or not as a training run writes it.
    """
    path = folder / "base.json"
    base = read_json(path)
    _check(path.name, base, _BASE)
    return base


def read_test(folder: Path) -> dict[str, Any]:
    """Read test.json of a folder; empty where there is none.

    Raises:
        ValueError: If it is damaged, or not as a training run writes it.
    """
    path = folder / "test.json"
    test = read_json(path) if path.is_file() else {}
    _check(path.name, test, {}, {**_SCORES, "accuracy_confidence": "an object"})
    if test.get("accuracy_confidence"):
        _check(path.name, test["accuracy_confidence"], _INTERVAL)
    for metric in RECORDED:
        if metric.scorer is not None and test.get(metric.name) is not None:
            wanted = {f"{metric.name}_signature": "a text"}
            # A card shows no score without its signature: nobody could compare it.
            _check(path.name, test, wanted, {f"{metric.name}_confidence": "an object"})
            interval = test.get(f"{metric.name}_confidence") or {}
            _check(path.name, interval, {}, {"margin": "a number"})
    if any(test.get(name) is not None for name in _TRANSLATED):
        _check(path.name, test, _TEST)
    return test


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read the records of metrics.jsonl; none where there is no such file.

    Raises:
        ValueError: If a line is damaged, or not as a training run writes it.
    """
    path = folder / "metrics.jsonl"
    records = read_json_lines(path) if path.is_file() else []
    for number, record in enumerate(records, 1):
        place = f" in record {number}"
        _check(path.name, record, _RECORD, _RECORD_OPTIONAL, place=place)
        if record["kind"] == "valid":
            _check(path.name, record, _VALID_RECORD, place=place)
    return records


def _check(
    name: str,
    content: Mapping[str, Any],
    wanted: Mapping[str, str],
    optional: Mapping[str, str] | None = None,
    *,
    place: str = "",
) -> None:
    """Refuse a wanted entry that is missing, or any that is of another kind; null is missing."""
    for key, kind in {**(optional or {}), **wanted}.items():
        value = content.get(key)
        if value is None and key not in wanted:
            continue
        # In Python true and false are whole numbers, in JSON they are not.
        if not isinstance(value, _KINDS[kind]) or isinstance(value, bool) != (bool in _KINDS[kind]):
            # Cut, since a foreign file may hold anything of any length.
            found = "is missing" if value is None else f"is {repr(value)[:60]}"
            raise ValueError(
                f"`{name}` must have {kind} as {key!r}, as training scripts write it, but{place} "
                f"it {found}."
            )
