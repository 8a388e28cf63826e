"""The common part of the benchmarks' command lines: options, tables, the check of goals."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from goals import MISSES, check, listed_misses
from results import Record, Results, markdown, read

from hf_qrnn import kernels
from hf_qrnn.speed.paper_table import DTYPES

SIMD = ("baseline", "avx2", "avx512")


def add_options(parser: argparse.ArgumentParser, name: str, *, threads: list[int]) -> None:
    """Add the options of every benchmark of speed; `name` is that of its results' file."""
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda (cpu)")
    add(
        "--dtypes", nargs="+", choices=DTYPES, help="dtypes to measure (float32; on a GPU bfloat16)"
    )
    add(
        "--threads",
        nargs="+",
        type=int,
        default=threads,
        help="CPU thread counts; every one is measured",
    )
    add("--simd", choices=SIMD, help="instruction set of the native kernels (the CPU's best)")
    add_common_options(parser, name, seconds=2.0)


def add_common_options(parser: argparse.ArgumentParser, name: str, *, seconds: float) -> None:
    """Add the options of where results go and how they are judged."""
    add = parser.add_argument
    add("--seconds", type=float, default=seconds, help=f"time budget of a cell ({seconds:g})")
    add(
        "--output",
        type=Path,
        default=Path(f"runs/{name}.jsonl"),
        help=f"JSON lines file of the results (runs/{name}.jsonl)",
    )
    add(
        "--table",
        type=Path,
        metavar="FILE",
        help="print the tables of FILE, an --output, and measure nothing",
    )
    add(
        "--check",
        action="store_true",
        help="exit with 1 if a goal is missed that --misses does not list",
    )
    add(
        "--misses",
        type=Path,
        default=MISSES,
        help="list of known missed goals (benchmarks/misses.md)",
    )


def choose_simd(parser: argparse.ArgumentParser, name: str) -> None:
    """Make the compiled kernels use these instructions, or say why they cannot."""
    reason = kernels.unavailable(torch.device("cpu"))
    if reason is not None:
        parser.error(f"--simd chooses among compiled kernels, but there are none: {reason}")
    try:
        torch.ops.hf_qrnn_kernels.simd(name)
    except RuntimeError:
        parser.error(f"--simd must be what this CPU has, but is {name}.")


def run(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], Iterator[Record]],
) -> int:
    """Measure or read, print tables, check the goals; return the exit status.

    It is 1 for a missed goal that is not listed, and 2 for a list of misses with faults.
    """
    if options.check:
        try:
            # Before minutes of measuring, not behind them.
            listed_misses(options.misses.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            parser.error(str(error))
    if getattr(options, "simd", None):
        choose_simd(parser, options.simd)
    if options.table is None:
        results = Results(options.output)
        for record in measure(options):
            results.add(record)
        records = results.records
    else:
        records = read(options.table)
    print("\n" + markdown(records) + "\n")
    return check(records, options.misses) if options.check else 0
