"""Reads word vectors of text files, in the form of GloVe or of word2vec.

A line is a word and its numbers, between blanks. A file of word2vec begins with a line of two whole
numbers, those of the words and of the numbers of each. Only what is asked for is kept, so a file
larger than the memory can be read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy

from .rows import OPENERS

Vectors = dict[str, "numpy.ndarray[Any, numpy.dtype[numpy.float32]]"]


def read_word_vectors(path: str | Path, words: Collection[str], *, size: int) -> Vectors:
    """Read the vectors of those `words` that the file has; of two of one word the first stays.

    Args:
        path: A text file, plain, .gz or .xz.
        words: The words to look for.
        size: Numbers of a vector, D.

    Returns:
        (D,) in float32 for each word found.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the vectors are of another size, a line is none, or the file is not UTF-8.
    """
    path, wanted, found = Path(path), frozenset(words), Vectors()
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an existing file, but is '{path}'.")
    for number, line in _lines(path):
        # From the right: some words of GloVe's have blanks in them.
        word, *numbers = line.rstrip("\n").rstrip(" \r").rsplit(" ", size)
        if number == 1:
            width = _width(line)
            if width != size:
                raise ValueError(
                    f"`path` must hold vectors of {size} numbers, the `embedding_size`, but those "
                    f"of '{path}' have {width}."
                )
            if _is_head(line):
                continue
        if len(numbers) != size:
            raise _no_vector(path, number, size)
        if word in wanted and word not in found:
            try:
                vector = numpy.array(numbers, dtype=numpy.float32)
            except ValueError:
                raise _no_vector(path, number, size) from None
            if not numpy.isfinite(vector).all():
                raise _no_vector(path, number, size)
            found[word] = vector
    return found


def _width(line: str) -> int:
    """Count the numbers of a vector by the first line of a file."""
    return int(line.split()[1]) if _is_head(line) else len(line.split()) - 1


def _is_head(line: str) -> bool:
    parts = line.split()
    return len(parts) == 2 and all(part.isdecimal() for part in parts)


def _no_vector(path: Path, number: int, size: int) -> ValueError:
    return ValueError(
        f"line {number} of '{path}' must be a word and {size} numbers between blanks, but is not."
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines; only a newline ends one, since words may hold other separators."""
    with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(
                f"`path` must be UTF-8 text, but '{path}' has an invalid byte in line {number}."
            ) from None
        except (OSError, EOFError) as error:
            raise ValueError(
                f"`path` must be a whole file of word vectors, but '{path}' is not: {error}."
            ) from error
