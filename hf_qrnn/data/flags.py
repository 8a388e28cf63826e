"""Ties parameters to what a user types: the help of flags, and their names in errors.

A function names its parameter: "`path` must be an existing file". Its caller knows what the user
typed instead, and says so once, around the call:

    with typed(path="--source"):
        lines = read_lines(args.source)

Blocks nest: an inner one may turn `path` into `train_source`, an outer one that into
`--train_source`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from typing import Any, TypeVar

_SEEN = "_flags_that_were_given"
_NAME = re.compile(r"`(\w+)`")
_T = TypeVar("_T")


def option(default: _T, text: str) -> _T:
    """Make a field of a dataclass of options, whose flag has `text` as its help."""
    made: _T = field(default=default, metadata={"help": text})
    return made


def several(text: str) -> dict[str, Any]:
    """Make the metadata of a field whose flag takes several values, and may come again.

    By argparse's own way a flag that comes again silently replaces its first values.
    """
    return {"help": text, "action": _Several}


class _Several(argparse.Action):
    """A flag that collects the values of all its uses; those of a file give way to them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        seen: set[str] = getattr(namespace, _SEEN, set())
        before = getattr(namespace, self.dest) if self.dest in seen else []
        setattr(namespace, self.dest, [*before, *values])
        setattr(namespace, _SEEN, {*seen, self.dest})


@contextmanager
def typed(names: Mapping[str, str] | None = None, /, **more: str) -> Iterator[None]:
    """Put what the user typed for the names in backticks of errors that leave this block.

    Args:
        names: The typed word for each name.
        more: The same, as keywords.
    """
    shown = {**(names or {}), **more}
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        # An error of the system's has a number and a file name, and no parameter of ours.
        if len(error.args) == 1 and isinstance(error.args[0], str):
            sentence = _NAME.sub(lambda found: f"`{shown.get(found[1], found[1])}`", error.args[0])
            # The same error, with its type and traceback. A new one would lose attributes.
            error.args = (sentence,)
            # An ImportError prints this instead of its arguments.
            if isinstance(error, ImportError):
                error.msg = sentence
        raise
