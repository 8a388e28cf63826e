#!/usr/bin/env python
"""Reproduce the paper's language models, classifiers and translators, with controls beside them.

    python benchmarks/reproduce.py ptb-word-paper --minutes 100 --data DIR
    python benchmarks/reproduce.py ptb-word-paper-lstm-minutes --data DIR    # its control
    python benchmarks/reproduce.py --all --minutes 60 --data DIR             # rows without a result
    python benchmarks/reproduce.py --list                # 1 if a result or a card is missing
    python benchmarks/reproduce.py --write               # the tables into docs/reproduction.md

DIR holds folders of data (lm_ptb, sentiment_imdb, nmt_multi30k, nmt_tatoeba). A row's model is
trained below --out by its script's own `main`, where an interrupted run goes on; its result is
stored in benchmarks/results/reproduction, its card in model_cards. A control (equal parameters) has
the minutes or the updates of the row that it is compared with, which must have a result. Flags of
the script behind `--` go over the preset's. docs/reproduction.md tells of data, protocol, results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ending import end_process
from reproduction_rows import (
    CARDS,
    RESULTS,
    TABLE,
    Row,
    label,
    listing,
    markdown,
    parse_row,
    read_results,
    score,
)
from reproduction_runs import Setting, run_row
from stored_rows import OneSentenceParser, RunFailedError, read_result

from hf_qrnn.data.flags import typed

PAGE = Path(__file__).parents[1] / "docs" / "reproduction.md"
START, END = "<!-- tables -->\n", "\n<!-- end -->"
_SETTING = ("out", "data", "minutes", "results", "cards", "threads", "again")


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = OneSentenceParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help="rows to run, as ptb-word-paper")
    add("--all", action="store_true", help="run every row that has no result")
    add("--again", action="store_true", help="run rows that have a result too, from the start")
    add("--minutes", type=float, default=0.0, help="minutes of training (0: the preset's epochs)")
    add("--data", type=Path, default=Path("data"), help="folder of the folders of data (data)")
    add("--out", type=Path, default=Path("runs/reproduction"), help="folder of the runs")
    add("--results", type=Path, default=RESULTS, help="folder of the results")
    add("--cards", type=Path, default=CARDS, help="folder of the cards")
    add("--threads", type=int, default=1, help="CPU threads (1)")
    add("--list", action="store_true", help="print every row with command, result and controls")
    add("--table", action="store_true", help="print the tables of docs/reproduction.md")
    add("--write", action="store_true", help="write them into docs/reproduction.md")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; 1 where --list misses something, 2 after a mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    options = make_parser().parse_args(words[:cut])
    try:
        with typed({name: f"--{name}" for name in _SETTING}):
            return _work(options, tuple(words[cut + 1 :]))
    except RunFailedError as error:  # it has said why
        return error.status
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _work(options: argparse.Namespace, flags: tuple[str, ...]) -> int:
    rows = [parse_row(name) for name in options.rows] + (list(TABLE) if options.all else [])
    if not rows and not (options.list or options.table or options.write):
        raise ValueError("a ROW, --all, --list, --table or --write must be given, but none is.")
    setting = Setting(**{name: getattr(options, name) for name in _SETTING}, flags=flags)
    run_rows(rows, setting)
    results = read_results(options.results)
    if options.table:
        print(markdown(results))
    if options.write:
        write_page(markdown(results))
    if not options.list:
        return 0
    text, missing = listing(results, setting.command, options.cards)
    print(text)
    return int(missing > 0)


def run_rows(rows: Sequence[Row], setting: Setting) -> None:
    """Run the rows one after the other; those that have a result are skipped, unless `again`."""
    for row in rows:
        if read_result(row, setting.results) is not None and not setting.again:
            print(f"skipped {row.name}: it has a result (--again runs it anew)", flush=True)
            continue
        record = run_row(row, setting)
        print(f"{row.name}: {label(row)} {score(row, record)}", flush=True)


def between(page: str) -> str:
    """Return what stands between the marks of a page."""
    return page.split(START)[1].split(END)[0]


def write_page(text: str, path: Path = PAGE) -> None:
    """Put the tables between the marks of a page."""
    before, rest = path.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}{text}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    end_process(main)
