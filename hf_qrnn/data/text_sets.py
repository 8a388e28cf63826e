"""Reads the texts of data sets that have splits: of the Hub, or of a local folder."""

from __future__ import annotations

from .reading import VALID_SPLITS, load_splits


def read_text_split(
    name: str, config: str | None, split: str, *, column: str = "text"
) -> list[str]:
    """Read the lines of "train", "valid" or "test" of a data set.

    Args:
        name: A name on the Hub, or a folder.
        config: The data set's configuration, if it has several.
        split: The split; there may be no "test", which has no lines then.
        column: The column of the texts; each is a line, or several.

    Raises:
        ValueError: If the split or the column is missing, or holds no text.
    """
    splits = load_splits(name, config)
    candidates = VALID_SPLITS if split == "valid" else (split,)
    found = next((candidate for candidate in candidates if candidate in splits), None)
    if found is None and split == "test":
        return []
    if found is None:
        raise ValueError(
            f"`dataset_name` must have the split {candidates[0]!r}, but {name!r} has only "
            f"{', '.join(map(repr, splits))}: give --{split}_file."
        )
    lines: list[str] = []
    for row in splits[found]:
        text = row.get(column)
        if not isinstance(text, str):
            raise ValueError(
                f"`text_column` must be a column of texts, but is {column!r}, and {name!r} has "
                f"{', '.join(map(repr, row))}."
            )
        lines += text.removesuffix("\n").split("\n")
    if not lines:
        raise ValueError(f"`dataset_name` must hold texts, but {found!r} of {name!r} is empty.")
    return lines
