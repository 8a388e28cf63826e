"""Reads texts and their labels: files, local folders and the Hub, by the seam of `reading.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .flags import option, typed
from .held_out import hold_out
from .reading import (
    FILE_SUFFIXES,
    VALID_SPLITS,
    Columns,
    Splits,
    TextPair,
    load_splits,
    pairs_of,
    read_rows,
)


@dataclass(frozen=True)
class LabelledPlaces:
    """The places of the labelled texts; each field is the flag of the same name.

    A split is read from its file, else from the data set.
    """

    train_file: str | None = option(
        None, "training texts (.jsonl, .tsv, .csv, .parquet; all but it also .gz, .xz)"
    )
    valid_file: str | None = option(None, "validation texts")
    test_file: str | None = option(None, "test texts, read at the end")
    dataset_name: str | None = option(
        None, "a name on the Hub, a local folder, or one file of training texts"
    )
    dataset_config: str | None = option(None, "the configuration of the data set")
    text_column: str = option("text", "key or column of the text")
    label_column: str = option("label", "key or column of the label")
    valid_share: float = option(
        0.0, "hold out this share of the training texts, where there are no validation texts"
    )


@dataclass(frozen=True)
class LabelledTexts:
    """The texts of one experiment, each with its label as the target.

    Attributes:
        train: Training texts.
        valid: Validation texts.
        test: Test texts; empty when the options name none.
    """

    train: list[TextPair] = field(repr=False)
    valid: list[TextPair] = field(repr=False)
    test: list[TextPair] = field(repr=False)


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
    columns = Columns(text_column, label_column)
    return read_rows(Path(path), columns, lambda rows: _labelled(rows, label_column, str))


def load_labelled_texts(places: LabelledPlaces) -> LabelledTexts:
    """Load training, validation and (if named) test texts.

    Raises:
        FileNotFoundError: If a named file does not exist.
        ImportError: If `datasets` or `pyarrow` is needed and not installed.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If no training or validation texts are named, or a file is not what it should
            be.
    """
    share = places.valid_share
    if not 0 <= share < 1:
        raise ValueError(f"`valid_share` must be in [0, 1), but is {share}.")
    if share and places.valid_file is not None:
        raise ValueError(f"`valid_share` must be left out with `valid_file`, but is {share}.")
    splits = _Loaded(places)
    train = splits.read("train", ("train",))
    if train is None:
        raise ValueError("`train_file` or `dataset_name` must be given, but neither is.")
    if share:
        number = len(train)
        train, valid = hold_out(train, share)
        if not (train and valid):
            raise ValueError(
                "`valid_share` must leave texts to train on and to validate with, but is "
                f"{share} of {number} texts."
            )
    else:
        valid = splits.read("valid", VALID_SPLITS) or []
    if not valid:
        raise ValueError(
            "`valid_file`, `valid_share` or a `dataset_name` with such a split must be given, but "
            "none is."
        )
    return LabelledTexts(train, valid, splits.read("test", ("test",)) or [])


class _Loaded:
    """The places, with the data set opened once."""

    def __init__(self, places: LabelledPlaces) -> None:
        self._places = places
        self._splits: Splits | None = None

    def read(self, split: str, names: tuple[str, ...]) -> list[TextPair] | None:
        """Read a split, which a data set may have by one of several `names`; None = nowhere."""
        places = self._places
        path: str | None = getattr(places, f"{split}_file")
        text, label = places.text_column, places.label_column
        name, flag = places.dataset_name, f"{split}_file"
        if path is None and name is not None and _is_file(name):
            path, flag = (name, "dataset_name") if split == "train" else (None, "")
            name = None
        if path is not None:
            with typed(path=flag):
                found = read_labelled_file(path, text_column=text, label_column=label)
            return _not_empty(found, flag, repr(path))
        if name is None:
            return None
        if self._splits is None:
            self._splits = load_splits(name, places.dataset_config)
        known = next((known for known in names if known in self._splits), None)
        if known is None:
            return None
        rows: Any = self._splits[known]
        name_of = getattr(getattr(rows, "features", {}).get(label), "int2str", str)
        labelled = _labelled(enumerate(rows, 1), label, name_of)
        where = f"the split '{known}' of '{name}'"
        return _not_empty(
            list(pairs_of(labelled, Columns(text, label), where, "row")), "dataset_name", where
        )


def _is_file(name: str) -> bool:
    return Path(name).is_file() or Path(name).suffix.lower() in FILE_SUFFIXES


def _not_empty(pairs: list[TextPair], flag: str, where: str) -> list[TextPair]:
    if not pairs:
        raise ValueError(f"`{flag}` must hold a text, but {where} is empty.")
    return pairs


def _labelled(
    rows: Iterable[tuple[int, Any]], label: str, name_of: Callable[[int], str]
) -> Iterator[tuple[int, Any]]:
    """Yield rows whose labels are texts; `name_of` gives that of a whole number."""
    for number, row in rows:
        if isinstance(row, Mapping) and type(row.get(label)) is int:
            row = {**row, label: name_of(row[label])}
        yield number, row
