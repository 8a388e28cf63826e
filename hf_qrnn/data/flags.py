"""What a user typed, in the sentences of errors.

A function names its parameter: "`path` must be an existing file". Who calls it for a user knows
what the user typed instead, and says so once, around the call:

    with typed(path="--source"):
        lines = read_lines(args.source)

Blocks nest: an inner one may turn `path` into `train_source`, an outer one that into
`--train_source`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_NAME = re.compile(r"`(\w+)`")


@contextmanager
def typed(names: Mapping[str, str] | None = None, /, **more: str) -> Iterator[None]:
    """Names in backticks become what the user typed, in the errors that leave this block.

    Args:
        names: What was typed for each name.
        more: The same, as keywords.
    """
    shown = {**(names or {}), **more}
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        # An error of the system's has a number and a file name, and no parameter of ours.
        if len(error.args) == 1 and isinstance(error.args[0], str):
            sentence = _NAME.sub(lambda found: f"`{shown.get(found[1], found[1])}`", error.args[0])
            error.args = (sentence,)
            if isinstance(error, ImportError):
                error.msg = sentence
        raise
