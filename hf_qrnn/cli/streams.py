"""Reads and writes lines of bytes: files, compressed files, standard input and output."""

from __future__ import annotations

import contextlib
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

_WINDOW_BATCHES = 64  # Lines are sorted by length within a window of 64 batches.


def check_files(input_path: str | None, output_path: str | None, **others: str | None) -> None:
    """Raise ValueError where `--input` cannot be read or `--output` cannot be written.

    Args:
        input_path: None is standard input.
        output_path: None is standard output.
        others: What other flags read or write, by the flags' names.
    """
    if output_path is not None:
        check_folder(output_path)
        # To open the output would empty the input.
        if _is_same(input_path, output_path):
            raise ValueError(f"`--output` must not be the input, but is '{output_path}' too.")
        for flag, path in others.items():
            if path is not None and _is_same(path, output_path):
                raise ValueError(
                    f"`--output` must not be the file of --{flag}, but is '{output_path}' too."
                )
    if input_path is None:
        return
    # `<(command)` of a shell is a pipe.
    if not (Path(input_path).is_file() or Path(input_path).is_fifo()):
        raise ValueError(f"`--input` must be an existing file, but is '{input_path}'.")


def _is_same(path: str | None, other: str) -> bool:
    """Tell whether two paths are one file, by links too; None is standard input."""
    try:
        if path is not None:
            return os.path.realpath(path) == os.path.realpath(other) or os.path.samefile(
                path, other
            )
        is_file = stat.S_ISREG(os.stat(other).st_mode)
        return is_file and os.path.samestat(os.fstat(sys.stdin.fileno()), os.stat(other))
    except (OSError, ValueError, AttributeError):  # one is not there, or no file of the system's
        return False


def check_folder(path: str) -> None:
    """Raise ValueError where there is no folder for an output file."""
    if not Path(path).parent.is_dir():
        raise ValueError(f"The folder of an output file must exist, but that of '{path}' does not.")


def replace_closed() -> None:
    """Put something in the places of standard streams that were closed, which Python has as None.

    Errors go nowhere then. A write to standard output fails as it does to any program, and no file
    that is opened later takes its number. Standard input stays None: see `open_input`.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)  # noqa: SIM115


@contextlib.contextmanager
def open_input(path: str | None) -> Iterator[IO[bytes]]:
    """Open a file to read, uncompressed where it ends in .gz or .xz; None is standard input."""
    from hf_qrnn.data.rows import OPENERS

    if path is None:
        if sys.stdin is None:
            raise ValueError(
                "`--input` must be given where standard input is closed, but is left out."
            )
        yield sys.stdin.buffer
        return
    opener = OPENERS.get(Path(path).suffix.lower())
    if opener is None:
        with open(path, "rb") as file:
            yield file
        return
    with opener(path, "rb") as packed:
        try:
            packed.peek(1)  # before an output is opened, which empties it
        except (OSError, lzma.LZMAError, EOFError) as error:
            kind = Path(path).suffix
            raise ValueError(
                f"`--input` must be a {kind} file, but '{path}' is not: {error}."
            ) from error
        yield packed


class Output:
    """A file that loses what it had when the first bytes are written, and not before.

    Args:
        file: Open to write, at its start, with all that it had.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.is_begun = False

    def begin(self) -> None:
        """Empty the file, the first time; a pipe or a device has nothing to lose."""
        if not self.is_begun and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(0)
        self.is_begun = True

    def write(self, data: bytes) -> None:
        """Write bytes."""
        self.begin()
        self._file.write(data)

    def flush(self) -> None:
        """Let whoever reads the file see what was written."""
        self._file.flush()


@contextlib.contextmanager
def open_output(path: str | None) -> Iterator[IO[bytes] | Output]:
    """Open a file to write; None is standard output.

    Where the block fails before anything is written, the file is as it was before.
    """
    # Bytes, so that what is written does not depend on the locale.
    if path is None:
        yield sys.stdout.buffer
        return
    was_there = os.path.lexists(path)
    with naming(path), open(path, "wb", opener=_open_whole) as file:
        output = Output(file)
        try:
            yield output
            output.begin()  # an empty input has an empty output
        finally:
            if not output.is_begun and not was_there:
                os.unlink(path)


def _open_whole(path: str, flags: int) -> int:
    """Open a file without emptying it, for `open`."""
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Let an error of writing, which knows no name, tell what was written."""
    try:
        yield
    except OSError as error:
        # A write to an open file fails without its name, so "No space left" would not say where.
        if error.filename is None and error.strerror is not None:
            error.filename = name
        raise


def prompted(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield lines of a stream, each asked for with a prompt on standard error."""
    while True:
        # On standard error, so that standard output has translations alone.
        print("> ", end="", file=sys.stderr, flush=True)
        # Not iteration, which may read ahead and keep a line back.
        line = stream.readline()
        if not line:
            print(file=sys.stderr)
            return
        yield line


def _unbroken(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines; where a compressed file breaks off, say so."""
    try:
        yield from lines
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, not of gzip
        raise ValueError(f"`--input` must be whole, but is damaged: {error}.") from error


def decode(lines: Iterable[bytes], *, exact: bool = False) -> Iterator[str]:
    """Decode lines without their ends, as `data.reading.read_lines` reads them; or all of them."""
    for number, line in enumerate(_unbroken(lines), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise ValueError(
                f"`--input` must be UTF-8 text, but has an invalid byte in line {number}."
            ) from None
        if exact:
            yield text
            continue
        text = text.removesuffix("\n").removesuffix("\r")
        yield text.removeprefix("\ufeff") if number == 1 else text


def windows(lines: Iterator[str], batch_size: int, *, grow: bool) -> Iterator[list[str]]:
    """Yield runs of lines: one batch first, so that output starts soon, then up to 64 batches.

    A broken line ends the lines, but only after those before it.
    """
    size, window = batch_size, list[str]()
    try:
        for line in lines:
            window.append(line)
            if len(window) == size:
                yield window
                window = []
                size = min(2 * size, _WINDOW_BATCHES * batch_size) if grow else size
    except ValueError:  # of `decode`: a line that is not UTF-8
        if window:
            yield window
        raise
    if window:
        yield window
