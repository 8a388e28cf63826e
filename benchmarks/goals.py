"""The goals of speed and of pronunciation as data, and the judgement of records against them.

A goal is judged only where it was measured. A missed one is an error unless `misses.md` lists it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from results import BOTH, FORWARD, Record

from hf_qrnn.speed.paper_table import HIDDEN_SIZE, PAPER_CELLS

MISSES = Path(__file__).with_name("misses.md")

Cell = tuple[int, int]
LENGTHS = (32, 128, 512)
GRID = tuple((batch, length) for batch in (8, 32, 128) for length in LENGTHS)
SINGLE = tuple((1, length) for length in LENGTHS)
LONG = tuple(cell for cell in GRID if cell[1] == 512)
# Of the grid what stays below minutes a call on a CPU without bfloat16 instructions.
BFLOAT16_GRID = tuple(cell for cell in GRID if cell[0] * cell[1] <= 4096)


def _always(record: Record) -> bool:
    return True


@dataclass(frozen=True)
class Goal:
    """A bound on one field of records.

    Attributes:
        name: What is reported; with the cell behind it, what `misses.md` lists.
        where: Fields that a record must have for the goal to hold for it.
        metric: The field that is bounded.
        bound: Number, or the name of the record's field that holds it.
        at_most: Whether the bound is an upper one.
        cells: (batch, length) it holds for; None for any.
        mean: Whether the geometric mean over `cells` is bounded, and not each cell.
        holds: A further condition on a record.
    """

    name: str
    where: Mapping[str, Any]
    metric: str
    bound: float | str
    at_most: bool = False
    cells: tuple[Cell, ...] | None = None
    mean: bool = False
    holds: Callable[[Record], bool] = field(default=_always)

    def concerns(self, record: Record) -> bool:
        """Tell whether the goal is about this record."""
        return (
            all(record.get(name) == value for name, value in self.where.items())
            and (self.cells is None or (record["batch"], record["length"]) in self.cells)
            and self.metric in record
            and self.holds(record)
        )

    def label(self, record: Record) -> str:
        """Return the goal's name for one record."""
        sizes = [record[x] for x in ("batch", "length") if x in record]
        # The number of units tells poolings apart; of layers one size has goals.
        sizes += [record["hidden"]] if "hidden" in record and "hidden" not in self.where else []
        any_threads = record.get("device") == "cpu" and "threads" not in self.where
        threads = record["threads"] if any_threads else None
        parts = [self.name, "x".join(map(str, sizes)), threads and f"threads {threads}"]
        parts += [record["peer"]] if "peer" in record and "peer" not in self.where else []
        return ", ".join(part for part in parts if part)


class Verdict(NamedTuple):
    """A measured value beside its bound."""

    name: str
    value: float
    bound: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Tell whether the bound is kept; NaN keeps none."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        """Write one line."""
        word, sign = ("met   ", "<=") if self.met else ("MISSED", "<=")
        sign = sign if self.at_most else ">="
        return f"{word} {self.name}: {self.value:.3g} (goal {sign} {self.bound:g})"


def _cpu(mode: str, threads: int = 1, dtype: str = "float32", **others: Any) -> dict[str, Any]:
    common = {"device": "cpu", "mode": mode, "threads": threads, "dtype": dtype}
    return {"bench": "layer", "peer": "nn.LSTM", "hidden": HIDDEN_SIZE, **common, **others}


def _gpu(peer: str, timing: str, mode: str = FORWARD) -> dict[str, Any]:
    how = {"dtype": "bfloat16", "peer": peer, "timing": timing, "mode": mode}
    return {"bench": "layer", "device": "cuda", "hidden": HIDDEN_SIZE, **how}


# The model of the paper; a smaller one in a test of the benchmark says nothing about it.
_TRANSLATION = {"bench": "translation", "layers": 4, "hidden": HIDDEN_SIZE}


def _cpu_goals() -> Iterator[Goal]:
    pooling = {"bench": "pooling", "backend": "compiled", "beyond_caches": True, "peer": None}
    for mode, least in ((FORWARD, 0.7), ("backward", 0.6)):
        yield Goal(f"CPU pool {mode} of copy", _cpu(mode, **pooling), "of_copy", least)
    for mode, each in ((FORWARD, 1.3), (BOTH, 1.25)):
        name = f"CPU layer {mode}"
        yield Goal(name, _cpu(mode), "ratio", each, cells=GRID)
        yield Goal(f"{name}, mean", _cpu(mode), "ratio", 1.5, cells=GRID, mean=True)
        two = _cpu(mode, threads=2)
        yield Goal(f"{name}, 2 threads, mean", two, "ratio", 1.7, cells=GRID, mean=True)
    yield Goal("CPU layer forward, one row", _cpu(FORWARD), "ratio", 4.0, cells=SINGLE)
    bfloat16 = _cpu(BOTH, dtype="bfloat16")
    yield Goal(f"CPU layer {BOTH}, bfloat16", bfloat16, "ratio", 1.3, cells=BFLOAT16_GRID)
    for mode, least in ((FORWARD, 3.0), (BOTH, 8.0)):
        loop = _cpu(mode, bench="loop", peer="LoopQRNN")
        yield Goal(f"CPU layer against LoopQRNN, {mode}", loop, "ratio", least, cells=LONG)
    training = {"device": "cpu", "dtype": "float32", "peer": "nn.LSTM", **_TRANSLATION}
    yield Goal("CPU translation characters per second", training, "ratio", 1.4)


def _training_goals() -> Iterator[Goal]:
    model = {"device": "cpu", "threads": 1, "layers": 4, "hidden": 256}
    for dtype, most in (("float32", 1.25), ("bfloat16", 3.3)):
        update = {**model, "bench": "update", "peer": "products", "dtype": dtype}
        name = f"CPU update over its bare products, {dtype}"
        yield Goal(name, update, "over", most, at_most=True)
    training = {**model, "bench": "training"}
    for dtype, before, least in (("float32", "float32", 1.35), ("bfloat16", "float32", 2.5)):
        peer = f"before, {before}"
        name = f"CPU training against before in {before}, {dtype}"
        yield Goal(name, {**training, "peer": peer, "dtype": dtype}, "ratio", least)
    for dtype in ("float32", "bfloat16"):
        for length, least in ((100, 1.5), (300, 2.5)):
            peer = {**training, "peer": "Marian", "dtype": dtype, "source": length}
            yield Goal(f"CPU training against Marian, {dtype}, {length}", peer, "ratio", least)
    paper = {"bench": "training", "device": "cpu", "threads": 1, "layers": 4, "hidden": 320}
    lstm = {**paper, "peer": "nn.LSTM", "dtype": "float32"}
    yield Goal("CPU training of the paper's model against nn.LSTM", lstm, "ratio", 1.6)
    memory = {"device": "cpu", "threads": 1, "bench": "memory", "layers": 3, "hidden": 128}
    for dtype in ("float32", "bfloat16"):
        name = f"CPU memory of training, last tenth over first, {dtype}"
        yield Goal(name, {**memory, "dtype": dtype}, "growth", 1.05, at_most=True)
    name = "CPU memory of training, bfloat16 over float32"
    yield Goal(name, {**memory, "dtype": "bfloat16"}, "over", 1.0, at_most=True)


def _decoding_goals() -> Iterator[Goal]:
    cpu = {"device": "cpu", "threads": 1, "layers": 4}
    paper, modern = ({**cpu, "model": x, "hidden": y} for x, y in (("paper", 320), ("modern", 256)))
    float32, int8, now = ({"by": x} for x in ("engine float32", "engine int8", "generate()"))
    for dtype in ("float32", "bfloat16", "int8"):
        where = {**modern, "bench": "process", "by": f"engine {dtype}"}
        name = f"one line by a whole process, {dtype}"
        yield Goal(f"{name}, seconds", where, "seconds", 0.5, at_most=True)
        yield Goal(f"{name}, peak memory in MB", where, "peak_mb", 80.0, at_most=True)
    where = {**modern, "bench": "process", **int8}
    yield Goal("model file in MB, int8", where, "file_mb", 6.0, at_most=True)
    steps = {**paper, "bench": "steps", **float32}
    name = "decoding step over reading its weights, float32"
    yield Goal(name, steps, "over", 1.3, at_most=True)

    def decoding(kind: Mapping[str, Any], batch: int, length: int, beams: int = 1) -> Any:
        task = {"bench": "decoding", "batch": batch, "length": length, "beams": beams}
        return {**kind, **task}

    one, batch = decoding(paper, 1, 100), decoding(modern, 32, 100)
    for who, least in ((float32, 8.0), (int8, 14.0)):
        dtype = who["by"].removeprefix("engine ")
        yield Goal(f"decoding against reference, {dtype}", {**one, **who}, "of_reference", least)
    yield Goal("decoding a sentence in ms, int8", {**one, **int8}, "ms", 10.0, at_most=True)
    rates: tuple[tuple[str, Mapping[str, Any], float], ...] = (
        ("float32", float32, 6000.0),
        ("int8 without VNNI", {**int8, "vnni": False}, 10600.0),
        ("int8 with VNNI", {**int8, "vnni": True}, 20000.0),
    )
    for name, who, least in rates:
        name = f"decoding characters per second, {name}"
        yield Goal(name, {**batch, **who}, "characters_per_second", least)
    for who in (float32, int8):
        where = {**batch, "model": "fast", **who}
        name = f"decoding with 6 + 2 layers over 4 + 4, {who['by'].removeprefix('engine ')}"
        yield Goal(name, where, "of_modern", 1.7)
    beams = [decoding(kind, 16, 30, 8) for kind in (paper, modern)]
    where = {**decoding(modern, 64, 50), **float32}
    yield Goal("decoding against reference, float32, modern", where, "of_reference", 4.0)
    for where in beams:
        name = f"decoding with beams against reference, float32, {where['model']}"
        yield Goal(name, {**where, **float32}, "of_reference", 6.0)
    yield Goal("generate() against reference", {**one, **now}, "of_reference", 2.0)
    for where in beams:
        name = f"generate() with beams against reference, {where['model']}"
        yield Goal(name, {**where, **now}, "of_reference", 2.0)
    for cell, least in (((1, 100), 2.0), ((1, 300), 3.0), ((1, 1000), 6.0), ((64, 50), 1.5)):
        where = {**modern, "bench": "decoding", "beams": 1, **int8}
        name = "decoding against CTranslate2, int8"
        yield Goal(name, where, "of_ctranslate2_int8", least, cells=(cell,))
    where = {**modern, "bench": "decoding_memory"}
    name = "memory of decoding, 100,000 characters over 1,000"
    yield Goal(name, where, "growth", 1.05, at_most=True)


def _gpu_goals() -> Iterator[Goal]:
    compiled = {"bench": "pooling", "device": "cuda", "dtype": "bfloat16", "backend": "compiled"}
    for mode, least in ((FORWARD, 0.9), ("backward", 0.85)):
        pooling = {**compiled, "mode": mode, "peer": None}
        yield Goal(
            f"GPU pool {mode} of copy, many channels",
            pooling,
            "of_copy",
            least,
            holds=lambda x: x["batch"] * x["hidden"] >= 32_000 and x["length"] >= 1000,
        )
        name = f"GPU pool {mode} over its floor, the paper's grid"
        pooling = {**pooling, "hidden": HIDDEN_SIZE}
        yield Goal(name, pooling, "of_floor", 2.0, at_most=True, cells=PAPER_CELLS)
    for mode, least in ((FORWARD, 1.5), (BOTH, 2.0)):
        others = {**compiled, "mode": mode}
        yield Goal(f"GPU pool {mode} against a peer, per byte", others, "ratio", least)
    a, b = "nn.LSTM A", "nn.LSTM B"
    yield Goal(
        "GPU layer forward against A, the paper's ratio",
        _gpu(a, "graph"),
        "ratio",
        "paper_ratio",
        cells=PAPER_CELLS,
    )
    for peer, timing, mode, cell, least in (
        (a, "eager", FORWARD, (8, 512), 60.0),
        (a, "graph", FORWARD, (8, 512), 150.0),
        (b, "eager", FORWARD, (8, 512), 18.0),
        (b, "graph", FORWARD, (8, 512), 40.0),
        (a, "graph", FORWARD, (256, 512), 8.0),
        (b, "graph", BOTH, (8, 512), 35.0),
    ):
        name = f"GPU layer {mode} against {peer[-1]}, {timing}"
        yield Goal(name, _gpu(peer, timing, mode), "ratio", least, cells=(cell,))
    yield Goal(
        "GPU layer over GEMM and byte floor",
        {"bench": "gemm", "device": "cuda", "dtype": "bfloat16", "hidden": HIDDEN_SIZE},
        "ratio",
        1.15,
        at_most=True,
        holds=lambda x: x["batch"] * x["length"] >= 16_000,
    )
    triton = {"device": "cuda", "peer": "compiled", **_TRANSLATION}
    yield Goal("GPU training, Triton over compiled", triton, "ratio", 0.7)
    yield from _gpu_whole_goals()


def _gpu_whole_goals() -> Iterator[Goal]:
    """Bounds on whole uses of a GPU (benchmarks/gpu): peers' layers, decoding, a training run."""
    layer = {"bench": "peer layer", "device": "cuda", "hidden": HIDDEN_SIZE, "mode": BOTH}
    for peer, least in (("ParaGRU-fused", 3.0), ("minGRU-pytorch", 5.0)):
        where = {**layer, "peer": peer}
        yield Goal(f"GPU layer {BOTH} against {peer}", where, "ratio", least)
    gru = {**layer, "peer": "minGRU-pytorch"}
    yield Goal("GPU memory over minGRU-pytorch", gru, "memory_ratio", 0.5, at_most=True)
    step = {"bench": "decode", "device": "cuda", "way": "graph", "layers": 4, "hidden": HIDDEN_SIZE}
    one = {**step, "batch": 1}
    yield Goal("GPU decoding of one row, ms a step", one, "ms_per_step", 0.035, at_most=True)
    run = {"bench": "trained", "device": "cuda", "preset": "modern", "data": "multi30k"}
    name = "GPU Multi30k in two minutes, BLEU"
    yield Goal(name, run, "bleu", 33.0, holds=lambda x: x["minutes"] <= 2.0)


def _pronunciation_goals() -> Iterator[Goal]:
    either = "ensemble or distilled"
    for what, metric, most in (
        ("mean of ten, single", "wer", 9.3),
        (f"mean of ten, {either}", "wer", 8.6),
        ("eng_us, single", "wer", 44.0),
        (f"eng_us, {either}", "wer", 41.0),
        ("cmudict, single", "wer", 21.0),
        ("cmudict, distilled", "wer", 19.9),
        ("cmudict, distilled", "per", 4.7),
        ("cmudict, single", "wer", "wer_of_g2p_en"),
        ("cmudict, single", "wer", "wer_of_espeak"),
        ("cmudict, single", "ms_per_word", 2.0),
    ):
        where = {"bench": "pronunciation", "what": what}
        than = f" against {most.removeprefix('wer_of_')}" if isinstance(most, str) else ""
        name = f"pronunciation {metric.replace('_', ' ')} of {what}{than}"
        holds = (lambda record, field=most: field in record) if isinstance(most, str) else _always
        yield Goal(name, where, metric, most, at_most=True, holds=holds)
    where = {"bench": "pronunciation", "what": "cmudict, single"}
    yield Goal("pronunciation words per second", where, "words_per_second", 5000.0)


DECODING_GOALS: tuple[Goal, ...] = tuple(_decoding_goals())
"""The goals of benchmarks/bench_decoding.py."""
GOALS: tuple[Goal, ...] = (*_cpu_goals(), *_training_goals(), *DECODING_GOALS, *_gpu_goals())
"""The goals of speed."""
PRONUNCIATION_GOALS: tuple[Goal, ...] = tuple(_pronunciation_goals())
"""The goals of benchmarks/pronunciation.py; of its records a word error rate is in per cent."""


class Judgement(NamedTuple):
    """Verdicts on what was measured, and the names of what was not."""

    verdicts: list[Verdict]
    unmeasured: list[str]


def judge(records: Sequence[Record], goals: Iterable[Goal] = GOALS) -> Judgement:
    """Hold `records` against `goals`; of a cell that was measured twice the later one counts."""
    verdicts: list[Verdict] = []
    unmeasured: list[str] = []
    for goal in goals:
        found = {goal.label(x): x for x in records if goal.concerns(x)}
        have = {(x.get("batch"), x.get("length")) for x in found.values()}
        lost = [cell for cell in goal.cells or () if cell not in have]
        if not found and len(goal.cells or ()) != 1:
            unmeasured.append(goal.name)
        elif lost:
            cells = ", ".join(f"{batch}x{length}" for batch, length in lost)
            unmeasured.append(f"{goal.name}: {cells}")
        if goal.mean:
            # The mean over some of the cells would be another figure under the same name.
            if not lost and found:
                values = [x[goal.metric] for x in found.values()]
                value = math.exp(sum(map(math.log, values)) / len(values))
                verdicts.append(Verdict(goal.name, value, float(goal.bound), goal.at_most))
            continue
        for name, record in found.items():
            bound = record[goal.bound] if isinstance(goal.bound, str) else goal.bound
            verdicts.append(Verdict(name, record[goal.metric], bound, goal.at_most))
    return Judgement(verdicts, unmeasured)


# ------------------------------------------------------------------ listed misses


def listed_misses(text: str, goals: Iterable[Goal] | None = None) -> set[str]:
    """Return what `misses.md` lists as missed: its lines of the form "- `name`".

    Raises:
        ValueError: If a name is no goal's.
    """
    known = (*GOALS, *PRONUNCIATION_GOALS) if goals is None else goals
    names = [goal.name for goal in known]
    listed = set(re.findall(r"^- `(.+)`$", text, flags=re.MULTILINE))
    for name in sorted(listed):
        if not any(name == known or name.startswith(f"{known}, ") for known in names):
            raise ValueError(f"`misses` must list goals, but none is called '{name}'.")
    return listed


def check(
    records: Sequence[Record], misses: Path = MISSES, goals: Iterable[Goal] | None = None
) -> int:
    """Print verdicts and what follows from them; return 1 for a miss that is not listed, else 0.

    Return 1 too where nothing was measured that a goal is about: that would prove nothing.

    Raises:
        ValueError: If the list of misses names what is no goal.
    """
    goals = tuple(GOALS if goals is None else goals)
    # One list has the misses of all benchmarks, whatever this one judges.
    known = (*GOALS, *PRONUNCIATION_GOALS, *goals)
    listed = listed_misses(misses.read_text(encoding="utf-8"), known)
    verdicts, unmeasured = judge(records, goals)
    for verdict in verdicts:
        is_known = not verdict.met and verdict.name in listed
        print(f"{verdict}; the cause is in {misses.name}" if is_known else verdict)
    for verdict in verdicts:
        if verdict.met and verdict.name in listed:
            print(f"no longer a miss, take it out of the list: {verdict.name}")
    for name in unmeasured:
        print(f"not measured: {name}")
    new = [verdict.name for verdict in verdicts if not verdict.met and verdict.name not in listed]
    num_met = sum(verdict.met for verdict in verdicts)
    print(f"{num_met} of {len(verdicts)} measured goals met, {len(new)} missed and not listed")
    if not verdicts:
        print("no goal was measured, so nothing is proven")
        return 1
    return int(bool(new))
