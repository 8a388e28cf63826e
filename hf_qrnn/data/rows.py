"""Reads the rows of one file, numbered, whatever its form; `reading.py` makes pairs of them.

Whatever is wrong with a file is one sentence that names the file and the line.
"""

import csv
import gzip
import importlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
LOCAL_FILES = (
    "use local files: --train_source and --train_target (text), or --train_file (JSON lines, TSV, "
    "CSV)"
)
"""What to do without an optional library, or a network."""


def import_optional(module: str, purpose: str) -> Any:
    """Import an optional library only now that it is needed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"`{package}` must be installed to {purpose}, but is not: pip install {package}, or "
            f"{LOCAL_FILES}."
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error of another library, which may fill a page."""
    return str(error).strip().split("\n", 1)[0].rstrip(".") + "."


def _read_bytes(path: Path) -> bytes:
    """Read the whole content of a file or a pipe, unpacked if it is .gz or .xz."""
    if not (path.is_file() or path.is_fifo()):  # `<(command)` of a shell is a pipe
        raise FileNotFoundError(f"`path` must be an existing file, but is '{path}'.")
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        return path.read_bytes()
    try:
        with opener(path, "rb") as file:
            content: bytes = file.read()
    # EOFError: a download that stopped before its end.
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise ValueError(
            f"`path` must be a complete {path.suffix} file, but '{path}' is not: {error}."
        ) from error
    return content


def read_text(path: Path) -> str:
    """Read the whole content of a UTF-8 file, without a byte order mark at its start."""
    content = _read_bytes(path)
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"`path` must be UTF-8 text, but '{path}' has an invalid byte in line {line}."
        ) from None


def json_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield the objects of JSON of a file's `lines` with their numbers, without blank lines."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"line {number} of '{path}' must be a JSON object, but is not: {error}."
            ) from error


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a file of comma-separated values, numbered by the line they begin in."""
    # `newline=""` leaves line ends in quotes as they are.
    # Strict, or a quote that is never closed would make one row of the rest of the file.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            # `line_num` counts the lines read, of which a row may have several.
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"the row in line {line} of '{path}' must be comma-separated values with every quote "
            f"closed, but is not: {error}."
        ) from error


def parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Read the rows of a parquet file, numbered from 1."""
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an existing file, but is '{path}'.")
    pyarrow, parquet = (
        import_optional(module, f"read '{path}'") for module in ("pyarrow", "pyarrow.parquet")
    )
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"`path` must be a parquet file, but '{path}' is not: {first_line(error)}"
        ) from error
    return enumerate(table.to_pylist(), 1)
