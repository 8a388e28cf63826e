"""The flag `--paragraphs` of `hf-qrnn translate`: documents of several sentences a line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .decoding import progress_bar, throughput
from .streams import decode, open_input, open_output, windows

if TYPE_CHECKING:
    from hf_qrnn.data.translations import Translation

    from .engines import AnyTranslator


def add_paragraphs(add: Any) -> None:
    """Add the flag to a command, by its `add_argument`."""
    text = (
        "split lines into sentences and join their translations: what is between them, blank "
        "lines, indentation and line ends stay; too long sentences are split at clauses, and what "
        "is doubtful is told on standard error"
    )
    add("--paragraphs", action="store_true", help=text)


def check_paragraphs(args: argparse.Namespace) -> None:
    """Raise ValueError where a flag cannot go together with `--paragraphs`."""
    if not args.paragraphs:
        return
    given = {"n_best": args.n_best != 1, "scores": args.scores, "interactive": args.interactive}
    given["sample"] = args.sample
    given |= {name: getattr(args, name) is not None for name in ("attention", "hidden_states")}
    for name, is_given in given.items():
        if is_given:
            value = getattr(args, name)
            but = f"is {value!r}" if not isinstance(value, bool) else "is given"
            raise ValueError(f"`--{name}` must be left out with --paragraphs, but {but}.")


def translate_paragraphs(
    translate: Callable[..., list[list[Translation]]],
    translator: AnyTranslator,
    args: argparse.Namespace,
) -> None:
    """Translate the documents of `--input` to `--output`.

    Args:
        translate: Translates a list of sentences.
        translator: Its translator.
        args: The command line.
    """
    from hf_qrnn.translation.documents import longest_of, translate_lines

    longest = longest_of(translator)
    options = {name: getattr(args, name) for name in ("num_beams", "max_new_tokens", "batch_size")}

    def flag(number: int, doubt: str) -> None:
        print(f"line {number}: {doubt}", file=sys.stderr)

    num_lines = num_characters = 0
    start = time.perf_counter()
    with (
        open_input(args.input) as source,
        open_output(args.output) as target,
        progress_bar() as progress,
    ):
        for window in windows(decode(source, exact=True), args.batch_size, grow=True):
            results = translate_lines(
                partial(translate, **options),
                window,
                longest=longest,
                first=num_lines + 1,
                on_flag=flag,
            )
            num_lines += len(window)
            num_characters += sum(map(len, window))
            target.write("".join(results).encode())
            target.flush()  # whoever reads on need not wait for the end
            progress.update(len(window))
    seconds = time.perf_counter() - start
    print(throughput(num_lines, num_characters, seconds), file=sys.stderr)
