#!/usr/bin/env python
"""Time decoding by the engine against generate() and against other models and programs.

    python benchmarks/bench_decoding.py --check     # below five minutes on a quiet core
    python benchmarks/bench_decoding.py --check --docs
    python benchmarks/bench_decoding.py --quick     # tiny sizes: does everything run?

Who is compared takes turns in one run, with one thread and the same sources; that the tokens are
the same is asserted before anything is timed. All weights are random and no target ends by itself:
its length is the row's. A ratio `of_x` says how many times as fast as x.

- engine: `hf_qrnn.engine.Translator`, from folders in float32, bfloat16 and int8.
- generate(): that of our model today; "reference" as it was before decoding steps were fused.
- Marian, nn.LSTM: other models of as many parameters as the modern one, through generate().
- CTranslate2: the program, where it is installed, with that Transformer, in float32 and int8.
- reading: the weights that a step must read, read once and nothing else: what limits one row.
- process: `echo ... | hf-qrnn translate FOLDER`, from its start to its end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import decoding_docs
import torch
from bench_training import Sizes
from decoding_models import (
    CT2,
    DTYPES,
    ENGINES,
    EOS,
    GENERATE,
    LSTM,
    MARIAN,
    REFERENCE,
    Decoders,
    Ids,
    MissingError,
    Task,
    agreement,
    step_numbers,
)
from decoding_processes import decode, file_megabytes, has_vnni, translate
from ending import end_process
from results import Record, read
from running import add_common_options, run
from transformers.utils import logging

from hf_qrnn.speed.timing import Call, Timing, environment, interleave, times_as_fast, using_threads

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
Who = tuple[str, str]  # kind of model, and by whom
ALL = (*ENGINES, GENERATE, REFERENCE)
RIVALS = (MARIAN, LSTM, *CT2)

_ONE, _MANY, _MORE = Task(1, 1, 100, 100), Task(32, 1, 100, 100), Task(64, 1, 50, 50)
_BEAMS, _STEPS = Task(16, 8, 50, 30), Task(1, 1, 10, 500)


@dataclass(frozen=True)
class Plan:
    """The sizes that one run measures."""

    sizes: Mapping[str, Sizes] = field(
        default_factory=lambda: {
            "paper": Sizes(layers=4, hidden=320),
            "modern": Sizes(layers=4, hidden=256),
            "fast": Sizes(layers=4, hidden=256),
        }
    )
    depths: tuple[int, int] = (6, 2)
    one: Task = _ONE
    many: Task = _MANY
    more: Task = _MORE
    beams: Task = _BEAMS
    lengths: tuple[int, ...] = (300, 1000)
    steps: Task = _STEPS
    memory: tuple[int, int] = (1_000, 100_000)
    rounds: int = 3


_TINY = Sizes(layers=1, hidden=16)
QUICK = Plan(
    sizes={"paper": _TINY, "modern": _TINY, "fast": _TINY},
    depths=(2, 1),
    one=Task(1, 1, 6, 5),
    many=Task(3, 1, 6, 5),
    more=Task(4, 1, 5, 4),
    beams=Task(2, 3, 5, 4),
    lengths=(7, 9),
    steps=Task(1, 1, 3, 8),
    memory=(5, 50),
    rounds=1,
)


@dataclass(frozen=True)
class Row:
    """A task, and who takes turns at it."""

    what: str
    task: Task
    who: tuple[Who, ...]


class WrongTokensError(Exception):
    """Somebody found other tokens than he should: his speed would say nothing."""


def rows(plan: Plan) -> Iterator[Row]:
    """List everything that is timed in this process."""

    def of(kind: str, *names: str) -> tuple[Who, ...]:
        return tuple((kind, name) for name in names)

    yield Row("a sentence", plan.one, of("paper", *ALL))
    yield Row("a sentence", plan.one, of("modern", *ALL, *RIVALS))
    yield Row("a batch", plan.many, of("modern", *ALL, *RIVALS) + of("fast", *ENGINES))
    yield Row("a large batch", plan.more, of("modern", *ALL, *CT2))
    yield Row("beams", plan.beams, of("paper", *ALL))
    yield Row("beams", plan.beams, of("modern", *ALL, *RIVALS))
    for length in plan.lengths:
        task = Task(1, 1, plan.one.source, length)
        yield Row("a sentence", task, of("modern", *ENGINES, MARIAN, *CT2))


# ------------------------------------------------------------------ rows in this process


def draw(task: Task, seed: int = 0) -> Ids:
    """Draw sources; the last token of each is its end."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(4, 200, (task.rows, task.source - 1), generator=generator)
    return [[*source, EOS] for source in drawn.tolist()]


def name_of(by: str) -> str:
    """Return the name of a field about somebody."""
    return "of_" + by.lower().replace("()", "").replace(" ", "_").replace(".", "_")


def check_tokens(who: Who, outputs: Mapping[Who, Ids], wanted: Ids | None, task: Task) -> Record:
    """Hold somebody's tokens against those wanted.

    int8 computes other numbers than the model it was made of: of its tokens the share that agrees
    is told. Everybody else's are the same.

    Raises:
        WrongTokensError: If they are not, or a target has another length.
    """
    found = outputs[who]
    name = " ".join(who)
    lengths = {len(row) for row in found}
    if lengths != {task.target} or len(found) != task.rows:
        raise WrongTokensError(
            f"{name}: {task.rows} targets of {task.target} tokens must be found, "
            f"but there are {len(found)} of {sorted(lengths)}."
        )
    if wanted is None:
        return {}
    share = agreement(found, wanted)
    if share < 1 and not who[1].endswith("int8"):
        raise WrongTokensError(f"{name}: {share:.1%} of the tokens are those wanted.")
    return {"agreement": round(share, 4)}


def fields(plan: Plan, kind: str, task: Task) -> Record:
    """Return what a record says of its model and its task."""
    sizes = plan.sizes[kind]
    return {
        **{"model": kind, "device": "cpu", "threads": torch.get_num_threads()},
        **{"layers": sizes.layers, "hidden": sizes.hidden, "vnni": has_vnni()},
        **{"batch": task.rows, "length": task.target, "beams": task.beams, "source": task.source},
    }


def speeds(task: Task, timing: Timing) -> Record:
    """Return the figures of a timing."""
    return {
        "ms": round(1e3 * timing.median, 4),
        "ms_min": round(1e3 * timing.minimum, 4),
        "rounds": len(timing.seconds),
        "ms_per_step": round(1e3 * timing.median / task.target, 5),
        "characters_per_second": round(task.rows * task.target / timing.median),
    }


def measure_row(row: Row, decoders: Decoders, plan: Plan, seconds: float) -> Iterator[Record]:
    """Check everybody's tokens, then let all of them take turns.

    Raises:
        WrongTokensError: See `check_tokens`.
    """
    task, sources = row.task, draw(row.task)
    calls: dict[Who, Call] = {}
    outputs: dict[Who, Ids] = {}
    checked: dict[Who, Record] = {}
    for who in row.who:
        try:
            decoder = decoders.get(*who)
        except MissingError as error:
            about = {"bench": "decoding", "what": row.what, **fields(plan, who[0], task)}
            yield {**about, "by": who[1], "peer": who[1], "skipped": str(error)}
            continue
        calls[who] = partial(decoder, sources, task)
        outputs[who] = decoder(sources, task)
    truths: dict[object, Ids] = {}
    for who in calls:
        truth = decoders.truth(*who)
        if truth is not None and truth not in truths:
            truths[truth] = truth(sources, task)
        checked[who] = check_tokens(who, outputs, truths.get(truth), task)
    found = interleave(calls, seconds=seconds, min_rounds=plan.rounds, warm=True)
    for (kind, by), timing in found.items():
        record = {"bench": "decoding", "what": row.what, **fields(plan, kind, task), "by": by}
        record |= {**speeds(task, timing), **checked[kind, by]}
        for (other, peer), theirs in found.items():
            if other == kind and peer != by:
                record[name_of(peer)] = round(times_as_fast(timing, theirs), 3)
            elif other != kind and peer == by:
                record[f"of_{other}"] = round(times_as_fast(timing, theirs), 3)
        yield record


def reader(num_bytes: int, times: int) -> Call:
    """Make the call that reads so many bytes so many times: it seeks what is not there."""
    data, absent = b"\x02" * num_bytes, b"\x01"

    def call() -> None:
        for _ in range(times):
            assert data.find(absent) < 0

    return call


def measure_steps(decoders: Decoders, plan: Plan, seconds: float) -> Iterator[Record]:
    """Time steps of one row over the time to read their weights; the source is nearly nothing."""
    task, sources = plan.steps, draw(plan.steps)
    for dtype, by in zip(DTYPES, ENGINES, strict=True):
        about = {"bench": "steps", **fields(plan, "paper", task), "by": by, "dtype": dtype}
        try:
            decoder = decoders.get("paper", by)
        except MissingError as error:
            yield {**about, "peer": "reading", "skipped": str(error)}
            continue
        num_bytes = BYTES[dtype] * step_numbers(decoders.model("paper"))
        calls: dict[str, Call] = {by: partial(decoder, sources, task)}
        calls["reading"] = reader(num_bytes, task.target)
        found = interleave(calls, seconds=seconds, min_rounds=plan.rounds)
        reading = found["reading"]
        yield {
            **about,
            **{"peer": "reading", "step_mb": round(num_bytes / 1e6, 3)},
            **speeds(task, found[by]),
            "reading_ms_per_step": round(1e3 * reading.median / task.target, 5),
            "reading_gb_per_second": round(num_bytes * task.target / reading.median / 1e9, 2),
            "over": round(1 / times_as_fast(found[by], reading), 3),
        }


# ------------------------------------------------------------------ rows of whole processes


def measure_processes(decoders: Decoders, plan: Plan) -> Iterator[Record]:
    """Time whole commands in turns, the first of each for the disk's cache only."""
    ways: dict[str, tuple[Path, str]] = {}
    for by in ENGINES:
        try:
            ways[by] = decoders.folder("modern", by.removeprefix("engine ")), "native"
        except MissingError as error:
            about = {"bench": "process", **fields(plan, "modern", plan.one)}
            yield {**about, "by": by, "peer": by, "skipped": str(error)}
    ways[GENERATE] = decoders.folder("modern", "float32"), "torch"
    first = {by: translate(*way) for by, way in ways.items()}
    if first[ENGINES[0]].output != first[GENERATE].output:
        raise WrongTokensError("a process: the engine must translate as generate() does.")
    found = {by: [translate(*way) for _ in range(plan.rounds)] for by, way in ways.items()}
    for by, (folder, _) in ways.items():
        sizes = plan.sizes["modern"]
        yield {
            **{"bench": "process", "model": "modern", "device": "cpu", "threads": 1, "by": by},
            **{"layers": sizes.layers, "hidden": sizes.hidden, "rounds": plan.rounds},
            "characters": len(first[by].output.strip()),
            "seconds": round(statistics.median(x.seconds for x in found[by]), 4),
            "seconds_min": round(min(x.seconds for x in found[by]), 4),
            "peak_mb": round(max(x.peak_mb for x in found[by]), 1),
            "file_mb": round(file_megabytes(folder), 3),
        }


def measure_memory(decoders: Decoders, plan: Plan) -> Iterator[Record]:
    """Hold the memory of decoding a long target against that of a short one."""
    short, long = plan.memory
    folder, sizes = decoders.folder("modern", "bfloat16"), plan.sizes["modern"]
    less, more = (decode(folder, plan.one.source, length) for length in (short, long))
    yield {
        **{"bench": "decoding_memory", "model": "modern", "by": ENGINES[1]},
        **{"device": "cpu", "threads": 1, "layers": sizes.layers, "hidden": sizes.hidden},
        **{"characters": long, "first_characters": short, "seconds": round(more.seconds, 2)},
        **{"first_mb": round(less.peak_mb, 1), "last_mb": round(more.peak_mb, 1)},
        "growth": round(more.peak_mb / less.peak_mb, 4),
    }


# ------------------------------------------------------------------ running


def versions() -> dict[str, str]:
    """Return the versions of whoever is compared, as far as they are installed."""
    found = {}
    for name in ("transformers", "ctranslate2"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def measure(options: argparse.Namespace) -> Iterator[Record]:
    """Measure everything."""
    plan = QUICK if options.quick else Plan()
    logging.disable_progress_bar()  # models are saved and loaded by the dozen
    with using_threads(1), tempfile.TemporaryDirectory() as folder:
        about = {**environment("cpu"), **versions(), "command": sys.argv[1:]}
        yield {"bench": "environment", **about}
        decoders = Decoders(Path(folder), dict(plan.sizes), plan.depths)
        yield from measure_processes(decoders, plan)
        yield from measure_steps(decoders, plan, options.seconds)
        for row in rows(plan):
            yield from measure_row(row, decoders, plan, options.seconds)
        yield from measure_memory(decoders, plan)


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser, "bench_decoding", seconds=2.0)
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes, for which no goal is")
    text = "store the records in benchmarks/results, and write the tables into docs and README"
    add("--docs", action="store_true", help=f"{text}; not with --quick")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print and judge; return the exit status: 1 too where tokens are wrong."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.docs and options.quick:
        parser.error("--docs must be left out with --quick, whose figures say nothing.")
    try:
        status = run(parser, options, measure)
        if options.docs:
            decoding_docs.write(read(options.table or options.output))
        return status
    except WrongTokensError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    end_process(main)
