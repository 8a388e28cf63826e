"""Compares a run with a checkpoint, which only the run that wrote it may resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA = "training data"
"""The name of the training data's hash in an identity."""
# Fields that differ because the data do: a new character makes another vocabulary.
_FOLLOWS_DATA = {DATA, "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
_FOLLOWS_DATA |= {"decoder_start_token_id"}


def compare_identity(
    own: Mapping[str, Any], written: Mapping[str, Any], defaults: Mapping[str, Any], path: Path
) -> None:
    """Compare a run with the one that wrote a checkpoint.

    Args:
        own: Values by name; a mapping among them holds fields of its own.
        written: The checkpoint's, in the same form.
        defaults: Values by the same names, for what is absent in one of the two: an older version
            wrote no options that it did not have. None stands for what is absent here too.
        path: The checkpoint, for the error.

    Raises:
        ValueError: If they differ (names one field, and the data only if nothing else does).
    """
    fields, others, absent = (_flat(content) for content in (own, written, defaults))
    different = [
        name
        for name in sorted(fields.keys() | others.keys())
        if fields.get(name, absent.get(name)) != others.get(name, absent.get(name))
    ]
    if not different:
        return
    # What the user gave comes first: the cause, rather than what follows from it.
    name = next((name for name in different if name not in _FOLLOWS_DATA), different[0])
    if name in _FOLLOWS_DATA and DATA in different:
        raise ValueError(
            f"`{DATA}` must be those of '{path}' to resume from it, but is not the same: the text, "
            "its order or the tokenizer is another."
        )
    raise ValueError(
        f"`{name}` must be {others.get(name, absent.get(name))!r}, as in '{path}', to resume from "
        f"it, but is {fields.get(name, absent.get(name))!r}."
    )


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Put the fields of inner mappings in the place of the mappings."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return flat
