"""Stored results of rows: a row has a name, and its result is a JSON file of that name.

Also what the tables of rows and their command lines share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import transformers
from results import Record

from hf_qrnn.data.json_files import read_json
from hf_qrnn.speed.timing import environment


class Named(Protocol):
    """A row."""

    @property
    def name(self) -> str:
        """The name that the command line and the files have."""


class RunFailedError(Exception):
    """A run that ended with a status other than 0, which has said why."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the run ended with status {status}")
        self.status = status


class OneSentenceParser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def read_result(row: Named, folder: Path) -> Record | None:
    """Read the stored result of a row; None where there is none.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / f"{row.name}.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if found.get("row") != row.name:
        raise ValueError(f"'{path}' must be the result of {row.name}, but is not.")
    return found


def write_result(row: Named, record: Record, folder: Path) -> None:
    """Store the result of a row, at once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.name}.json"
    fresh = path.with_suffix(".saving")
    fresh.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def circumstances() -> Record:
    """Say when, on what and with which versions a row is measured now."""
    found = environment("cpu")
    own = ("cpu", "cpu_capability", "cores", "threads", "load_average")
    return {
        "date": found["date"],
        "hardware": {name: found[name] for name in own},
        "versions": {
            **{name: found[name] for name in ("python", "torch", "hf_qrnn")},
            "transformers": transformers.__version__,
        },
    }


def figure(value: Any, digits: int = 2) -> str:
    """Write a number of a table; "-" is not measured yet."""
    return "-" if value is None else f"{value:,.{digits}f}"


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    table = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)
