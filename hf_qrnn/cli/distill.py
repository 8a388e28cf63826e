"""The command `hf-qrnn distill`."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hf_qrnn.data.flags import typed

from .decoding import (
    add_decoding,
    add_language,
    check_decoding,
    check_n_best,
    progress_bar,
    throughput,
)
from .engines import add_engine, check_threads, open_translator
from .models import model_name
from .streams import naming

if TYPE_CHECKING:
    from hf_qrnn.data.translations import Translation

_WINDOW_BATCHES = 64  # Lines are sorted by length within a window of 64 batches.

_DISTILL_TEXT = """\
Translate a file of sentences or words and write a training set for --distilled_file of the training
script: a line "source, target, score" for each translation, separated by tabs (and the language in
a fourth column, where --language is given). The score is the natural logarithm of the
translation's probability, end token included. Several teachers translate as an ensemble. Left out
are translations that reached the length limit, that hold a tab, a line end or a character unknown
to the teacher, whose probability is below --min_probability, or whose text is there already for
that line. OUT is there when the command has
ended well, and not before."""


def add_distill(commands: Any) -> None:
    """Add `distill` to the commands of a parser."""
    parser = commands.add_parser(
        "distill",
        help="write a training set of a teacher's translations",
        description=_DISTILL_TEXT,
    )
    words = {"name_or_path": "TEACHER", "model": "TEACHER", "language": "--language"}
    parser.set_defaults(run=_distill, typed=words)
    add = parser.add_argument
    teachers = (
        "folder with a saved model, its name in the box or on the Hub; several are an ensemble"
    )
    add("teacher", metavar="TEACHER", nargs="+", type=model_name, help=teachers)
    source = "the sentences to translate, one a line (text, .gz, .xz)"
    add("--source", metavar="FILE", required=True, help=source)
    output = "the training set (.tsv, also with .gz or .xz)"
    add("-o", "--output", metavar="OUT", required=True, help=output)
    add("--overwrite", action="store_true", help="replace OUT where it is there")
    best = "translations per line, at most --num_beams (default: 1)"
    add("--n_best", metavar="N", type=int, default=1, help=best)
    least = "leave out translations of a smaller probability (default: 0)"
    add("--min_probability", metavar="P", type=float, default=0.0, help=least)
    add_language(add)
    # The width by which Kim and Rush (1606.07947) take their teacher's best.
    add_decoding(add, num_beams=5)
    add_engine(add)


def _distill(args: argparse.Namespace) -> None:
    _check_distill(args)
    sources = _read_sources(args.source)
    translate, _ = open_translator(args.teacher, args)
    counts = Counter[str]()
    start = time.perf_counter()
    with _whole_or_nothing(args.output) as file, progress_bar(total=len(sources)) as progress:
        size = _WINDOW_BATCHES * args.batch_size
        for first in range(0, len(sources), size):
            window = sources[first : first + size]
            results = translate(
                window,
                num_beams=args.num_beams,
                num_return_sequences=args.n_best,
                max_new_tokens=args.max_new_tokens,
                batch_size=args.batch_size,
                on_batch=progress.update,
            )
            for source, translations in zip(window, results, strict=True):
                file.write(_lines(source, translations, args, counts))
        if not counts["written"]:
            raise ValueError(
                "`--source` must have a line whose translation can be kept, but "
                f"{_left_out(counts) or 'has no line with text'}."
            )
    seconds = time.perf_counter() - start
    print(throughput(len(sources), sum(map(len, sources)), seconds), file=sys.stderr)
    left_out = _left_out(counts)
    told = f"{counts['written']} lines written" + (f"; left out: {left_out}" if left_out else "")
    print(told, file=sys.stderr)


def _lines(
    source: str,
    translations: Sequence[Translation],
    args: argparse.Namespace,
    counts: Counter[str],
) -> bytes:
    """Write the lines of one source, and count them and what is left out."""
    from hf_qrnn.data.translations import distilled_line, one_line

    if not source.strip():
        counts["empty"] += 1
        return b""
    kept, texts = [], set[str]()
    for found in translations:
        if found.is_cut:
            counts["cut"] += 1
        elif one_line(found.text) != found.text or "\t" in found.text:
            counts["broken"] += 1
        elif found.has_unknown:
            counts["unknown"] += 1
        # Nothing to learn: training drops pairs without text.
        elif not found.text.strip():
            counts["blank"] += 1
        elif math.exp(found.log_probability) < args.min_probability:
            counts["unlikely"] += 1
        # Two rows of ids may be one text; a second line would count its source's text twice.
        elif found.text in texts:
            counts["twice"] += 1
        else:
            counts["written"] += 1
            texts.add(found.text)
            kept.append(distilled_line(source, found.text, found.log_probability, args.language))
    return "".join(kept).encode()


def _left_out(counts: Counter[str]) -> str:
    """Say what was left out, in the order of the reasons."""
    reasons = {
        "cut": "{} translations that reached the length limit",
        "broken": "{} with a tab or a line end",
        "unknown": "{} with an unknown character",
        "blank": "{} without text",
        "unlikely": "{} below --min_probability",
        "twice": "{} whose text is there already",
        "empty": "{} lines of --source without text",
    }
    return ", ".join(text.format(counts[name]) for name, text in reasons.items() if counts[name])


def _check_distill(args: argparse.Namespace) -> None:
    """Refuse arguments that can be seen to be wrong before anything is read."""
    check_decoding(args)
    check_threads(args)
    check_n_best(args)
    if not 0 <= args.min_probability <= 1:
        raise ValueError(f"`--min_probability` must be in [0, 1], but is {args.min_probability}.")
    output = Path(args.output)
    if not output.parent.is_dir():
        raise ValueError(
            f"The folder of an output file must exist, but that of '{output}' does not."
        )
    if os.path.realpath(args.source) == os.path.realpath(output):
        raise ValueError(f"`--output` must not be the source, but is '{output}' too.")
    if output.exists() and not (output.is_file() or output.is_dir()):
        raise ValueError(f"`--output` must be a file, but '{output}' is a pipe or a device.")
    if output.is_dir() or (output.exists() and not args.overwrite):
        raise ValueError(
            f"`--output` must be a new file, or be replaced by --overwrite, but '{output}' is "
            f"{'a folder' if output.is_dir() else 'there'}."
        )


def _read_sources(path: str) -> list[str]:
    """Read the lines to translate, each of which must be a column of a line.

    Raises:
        ValueError: If one has a tab or what may be taken for a line end (names it).
    """
    from hf_qrnn.data.reading import read_lines
    from hf_qrnn.data.translations import one_line

    with typed(path="--source"):
        lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if "\t" in line or one_line(line) != line:
            kind = "a tab" if "\t" in line else "a line end within"
            raise ValueError(
                f"line {number} of '{path}' must be one column of a line, but has {kind}."
            )
    return lines


@contextmanager
def _whole_or_nothing(path: str) -> Iterator[IO[bytes]]:
    """Open a file that takes its place when the block ends well, packed as its name says."""
    from hf_qrnn.data.rows import OPENERS

    opener: Any = OPENERS.get(Path(path).suffix.lower(), open)
    target = Path(os.path.realpath(path))  # a link stays one
    fresh = target.with_name(f"{target.name}.{os.getpid()}.saving")
    try:
        with naming(path):
            with opener(fresh, "wb") as file:
                yield file
            os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)
