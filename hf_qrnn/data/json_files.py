"""Reads the small text and JSON files of a folder; a damaged one is an error of one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path.name}` must be UTF-8 text, but is damaged: {error}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object that a file holds.

    Raises:
        ValueError: If it holds none.
    """
    return _parsed(read_text(path), f"`{path.name}` must be a JSON object")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of a file with one in every line; empty lines are left out.

    Raises:
        ValueError: If a line holds none.
    """
    # Only a newline ends a line: `splitlines` would cut strings at U+2028, which JSON may hold.
    return [
        _parsed(line, f"`{path.name}` must hold a JSON object a line, but line {number}")
        for number, line in enumerate(read_text(path).split("\n"), 1)
        if line.strip()
    ]


def _parsed(text: str, rule: str) -> dict[str, Any]:
    start = rule if ", but " in rule else f"{rule}, but"  # that of a line has its "but" already
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    # Python's parser calls itself for each bracket: a file of brackets is damaged too.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{start} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{start} is {_kind(content)}.")
    return content


def _kind(content: Any) -> str:
    """Name a value that is no object, in JSON's words."""
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(content), "a number")
