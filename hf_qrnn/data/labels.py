"""Reads texts and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .reading import Columns, TextPair, read_rows


def read_labelled_file(path: str | Path, *, text_column: str, label_column: str) -> list[TextPair]:
    """Read a file of texts, each with its label as the target; in a form of `read_pairs_file`.

    A label is a text or, in JSON lines and parquet, a whole number, which becomes text.

    Args:
        path: As for `read_pairs_file`.
        text_column: Key or column of the text.
        label_column: Key or column of the label.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As for `read_pairs_file`.
    """

    def labelled(rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for number, row in rows:
            if isinstance(row, Mapping) and type(row.get(label_column)) is int:
                row = {**row, label_column: str(row[label_column])}
            yield number, row

    return read_rows(Path(path), Columns(text_column, label_column), labelled)
