#!/usr/bin/env python
"""Measure pronunciation: our models, controls in the same loop, and programs that people use.

    python benchmarks/pronunciation.py fre-qrnn-single-0 --minutes 10 --data DIR
    python benchmarks/pronunciation.py cmudict-g2p_en cmudict-espeak
    python benchmarks/pronunciation.py --all --data DIR       # every row without a result
    python benchmarks/pronunciation.py --list                 # 1 if a row has no result
    python benchmarks/pronunciation.py --phantom models/pronounce-en --strings 10000

A row is data, model, variant and seed. The data are the eleven languages of the second SIGMORPHON
shared task on grapheme-to-phoneme conversion (DIR holds its files, as fre_train.tsv and
fre_dev.tsv, also .xz or .gz) and `cmudict`. A row's model is trained below --out, where an
interrupted run goes on, and its result is stored in benchmarks/results/pronunciation. Flags of
scripts/train_translation.py behind `--` go over the recipe's (scripts/configs/transduction.yaml).
docs/pronunciation.md tells of the data, the protocol and the results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ending import end_process
from goals import MISSES, PRONUNCIATION_GOALS, check
from pronunciation_phantom import count_phantoms, table
from pronunciation_rivals import MissingRivalError
from pronunciation_rows import (
    RESULTS,
    TABLE,
    Row,
    goal_records,
    listing,
    markdown,
    parse_row,
    read_result,
    read_results,
)
from pronunciation_runs import Setting, errors, prepare, run_row
from stored_rows import OneSentenceParser, RunFailedError

from hf_qrnn.data.flags import typed

_SETTING = (
    *("out", "results", "data", "minutes", "updates", "again", "threads", "words", "n_best"),
    *("members", "espeak"),
)


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = OneSentenceParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help="rows to run, as fre-qrnn-single-0")
    add("--all", action="store_true", help="run every row of the table that has no result")
    add("--again", action="store_true", help="run rows that have a result too, from the start")
    add("--minutes", type=float, default=10.0, help="minutes of training a model (10)")
    add("--updates", type=int, default=0, help="of rows of equal updates (as the QRNN's row made)")
    add("--data", type=Path, help="folder of the shared task's files")
    add("--out", type=Path, default=Path("runs/pronunciation"), help="folder of the runs")
    add("--results", type=Path, default=RESULTS, help="folder of the results")
    add("--threads", type=int, default=1, help="CPU threads (1)")
    add("--words", type=Path, help="words without pronunciations, a line each, to distil from too")
    add("--n_best", type=int, default=1, help="pronunciations of a word to distil from (1)")
    add("--members", type=int, default=5, help="models of an ensemble, teachers of a student (5)")
    add("--espeak", default="espeak-ng", help="the program espeak-ng")
    add("--list", action="store_true", help="print every row with its command and result")
    add("--table", action="store_true", help="print the tables of docs/pronunciation.md")
    add("--check", action="store_true", help="hold the results against the goals")
    add("--misses", type=Path, default=MISSES, help="list of known missed goals")
    add("--errors", type=int, metavar="N", help="print N errors of the rows; 0 = all")
    add("--phantom", type=Path, metavar="MODEL", help="count what MODEL says to what is no word")
    add("--language", help="of MODEL's words, where it has tags of languages")
    add("--strings", type=int, default=10_000, help="strings that are no words (10,000)")
    add("--prepare", action="store_true", help="write the tables of the rows' data, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; 1 for a missing row or a missed goal, 2 after a mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    options = make_parser().parse_args(words[:cut])
    try:
        named = (*_SETTING, "errors", "phantom", "language", "strings")
        with typed({name: f"--{name}" for name in named}):
            return _work(options, tuple(words[cut + 1 :]))
    except RunFailedError as error:  # it has said why
        return error.status
    except BrokenPipeError:  # an OSError, but no mistake
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _work(options: argparse.Namespace, flags: tuple[str, ...]) -> int:
    if options.phantom is not None:
        counts = count_phantoms(options.phantom, options.language, options.strings)
        print(table(counts))
        return int(any(count.faults for count in counts.values()))
    setting = Setting(**{name: getattr(options, name) for name in _SETTING}, flags=flags)
    rows = [parse_row(name) for name in options.rows] + (list(TABLE) if options.all else [])
    reports = (options.list, options.table, options.check)
    if not rows and not any(reports):
        raise ValueError("a ROW, --all, --list, --table or --check must be given, but none is.")
    if options.prepare:
        for data in dict.fromkeys(row.data for row in rows):
            print(prepare(data, setting))
        return 0
    if options.errors is not None:
        if options.errors < 0:
            raise ValueError(f"`errors` must be at least 0, but is {options.errors}.")
        for row in rows:
            print(f"{row.name}\n{errors(row, setting, options.errors)}")
        return 0
    run_rows(rows, setting)
    results = read_results(options.results)
    status = 0
    if options.table:
        print(markdown(results))
    if options.list:
        text, missing = listing(results, setting.command)
        print(text)
        status = int(missing > 0)
    if options.check:
        status = max(status, check(goal_records(results), options.misses, PRONUNCIATION_GOALS))
    return status


def run_rows(rows: Sequence[Row], setting: Setting) -> None:
    """Run the rows one after the other; those that have a result are skipped, unless `again`."""
    for row in rows:
        if read_result(row, setting.results) is not None and not setting.again:
            print(f"skipped {row.name}: it has a result (--again runs it anew)", flush=True)
            continue
        try:
            record = run_row(row, setting)
        except MissingRivalError as error:
            print(f"skipped {row.name}: {error}", flush=True)
            continue
        print(f"{row.name}: WER {record['wer']:.2f} %, PER {record['per']:.2f} %", flush=True)


if __name__ == "__main__":
    end_process(main)
