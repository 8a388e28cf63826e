"""The command `hf-qrnn score`."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any

from hf_qrnn.data.flags import typed
from hf_qrnn.metrics.table import TABLE

from .decoding import (
    add_decoding,
    add_language,
    check_decoding,
    choose_beams,
    progress_bar,
    tell_cut,
    throughput,
)
from .engines import add_engine, check_threads, open_translator
from .models import model_name

_SIGNED = ", ".join(metric.label for metric in TABLE if metric.scorer is not None)
_RATES = ", ".join(
    f"{metric.label} in per cent of {metric.of.format(lines='the')}"
    for metric in TABLE
    if metric.rate is not None
)
_SCORE_TEXT = textwrap.fill(
    f"Print {_SIGNED} of translations with sacrebleu's signatures, the same digits as sacrebleu's "
    f"command; {_RATES}. The translations come from a file (--hypotheses), or a model makes them "
    "(--model and --source). --bleu_tokenize zh, char, ja-mecab ... is for languages without "
    "blanks. --confidence adds 95 % intervals by bootstrap; --compare tests whether another "
    "system's translations differ by more than chance. Files may be .gz or .xz.",
    100,
)


class _Once(argparse.Action):
    """A flag whose second value would silently replace the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            again = " ".join(values) if isinstance(values, list) else values
            parser.error(f"`{option}` must be given once, but is given again with '{again}'")
        setattr(namespace, self.dest, values)


def add_score(commands: Any) -> None:
    """Add `score` to the commands of a parser."""
    parser = commands.add_parser(
        "score", help="score translations against references", description=_SCORE_TEXT
    )
    by_model = {"model": "--model", "name_or_path": "--model", "language": "--language"}
    parser.set_defaults(run=_score, typed={**by_model, "baseline": "--compare"})
    add = parser.add_argument
    right = "reference translations; with several files, line i of each is one for line i"
    add("--references", metavar="FILE", required=True, nargs="+", action="extend", help=right)
    once: dict[str, Any] = {"action": _Once}
    add("--hypotheses", metavar="FILE", help="the translations to score", **once)
    translates = (
        "folder, or name in the box or on the Hub, of a model that translates --source; several do "
        "as an ensemble"
    )
    add("--model", metavar="MODEL", nargs="+", type=model_name, help=translates, **once)
    add("--source", metavar="FILE", help="the sentences to translate", **once)
    tokens = "sacrebleu's tokenizer for BLEU (default: 13a)"
    add("--bleu_tokenize", metavar="T", default="13a", help=tokens)
    add("--confidence", action="store_true", help="add 95 %% intervals by bootstrap")
    baseline = "translations of another system, to compare with by a paired bootstrap"
    add("--compare", metavar="FILE", help=baseline, **once)
    drawn = "test sets to draw for --confidence and --compare (default: 1000)"
    add("--num_resamples", metavar="N", type=int, default=1000, help=drawn)
    add("--json", action="store_true", help="print one JSON object")
    add_language(add)
    add_decoding(add)
    add_engine(add)


def _score(args: argparse.Namespace) -> None:
    from hf_qrnn.metrics.scoring import compare_translations, score_translations

    _check_score(args)
    references = _read_references(args.references)
    baseline = None if args.compare is None else _lines(args.compare, "compare")
    if args.hypotheses is not None:
        hypotheses = _lines(args.hypotheses, "hypotheses")
    else:
        # Compared here, since translating the source may take an hour.
        source = _lines(args.source, "source")
        if len(source) != len(references):
            raise ValueError(
                "`--source` and `--references` must have the same number of lines, "
                f"but have {len(source)} and {len(references)}."
            )
        hypotheses = _translate_all(source, args)
    count, tokenize = args.num_resamples, args.bleu_tokenize
    # A comparison always draws test sets; scores do so only for their intervals.
    scores: Any
    if baseline is not None:
        scores = compare_translations(
            baseline, hypotheses, references, num_resamples=count, bleu_tokenize=tokenize
        )
    else:
        count = count if args.confidence else 0
        scores = score_translations(
            hypotheses, references, num_resamples=count, bleu_tokenize=tokenize
        )
    if args.json:
        import json

        print(json.dumps(scores.to_dict(), indent=2))
    else:
        print(scores)


def _check_score(args: argparse.Namespace) -> None:
    """Refuse arguments that can be seen to be wrong before anything is read."""
    from hf_qrnn.metrics.table import check_bleu_tokenizer

    check_decoding(args)
    check_threads(args)
    if args.num_resamples < 2:
        raise ValueError(f"`--num_resamples` must be at least 2, but is {args.num_resamples}.")
    if (args.hypotheses is None) == (args.model is None) or (
        (args.model is None) != (args.source is None)
    ):
        raise ValueError("Either `--hypotheses` or `--model` with `--source` must be given.")
    if args.language is not None and args.model is None:
        raise ValueError(
            f"`--language` must be left out with --hypotheses, but is {args.language!r}."
        )
    # Before a model is loaded: sacrebleu would refuse it after an hour of translating.
    with typed(bleu_tokenize="--bleu_tokenize"):
        check_bleu_tokenizer(args.bleu_tokenize)


def _read_references(paths: Sequence[str]) -> list[list[str]]:
    """Read the right translations of each line, one from each file."""
    streams = [_lines(path, "references") for path in paths]
    for path, lines in zip(paths, streams, strict=True):
        if len(lines) != len(streams[0]):
            raise ValueError(
                "All files of `--references` must have the same number of lines, but "
                f"'{paths[0]}' has {len(streams[0])} and '{path}' has {len(lines)}."
            )
    return [list(several) for several in zip(*streams, strict=True)]  # by line, not by file


def _lines(path: str, flag: str) -> list[str]:
    """Read the lines of the file that `--flag` gives."""
    from hf_qrnn.data.reading import read_lines

    # The outer block of `main` knows no `path`: each file has a flag of its own.
    with typed(path=f"--{flag}"):
        return read_lines(path)


def _translate_all(source: list[str], args: argparse.Namespace) -> list[str]:
    from hf_qrnn.data.translations import one_line

    translate, translator = open_translator(args.model, args)
    choose_beams(args, translator)
    start = time.perf_counter()
    with progress_bar(total=len(source)) as progress:
        results = translate(
            source,
            num_beams=args.num_beams,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            on_batch=progress.update,
        )
    seconds = time.perf_counter() - start
    print(throughput(len(source), sum(map(len, source)), seconds), file=sys.stderr)
    tell_cut(sum(best.is_cut for best, *_ in results), len(source))
    return [one_line(translations[0].text) for translations in results]
