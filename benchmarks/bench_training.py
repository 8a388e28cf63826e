#!/usr/bin/env python
"""Time whole updates of training against their bare matrix products and against other models.

    python benchmarks/bench_training.py --check                 # one thread, float32 and bfloat16
    python benchmarks/bench_training.py --baseline ../before    # against another checkout too

An update is forward, backward and AdamW on one batch with right pads, dropout 0.1 and label
smoothing 0.1. Whoever is compared takes turns with ours, on the same batch, in the same dtype
(bfloat16 by autocast).

- products: one `torch.mm` for each matrix product of forward and of both gradients, of the same
  shapes and in the same dtype. No pairs of steps, and MKL or oneDNN as torch chooses.
- baseline: the same update by the package in another folder, in a process of its own, as ours is.
- Marian: `MarianMTModel` of transformers with as many parameters, layers of the same width.
- nn.LSTM: the paper's preset against the same translator with LSTM layers (benchmarks/controls.py).
- memory: resident memory over updates whose batches have all lengths and the rows that fit, kept
  small as training keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from controls import LSTMTranslator
from ending import end_process
from results import Record, versus
from running import add_options, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MarianConfig, MarianMTModel

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.speed.paper_table import DTYPES
from hf_qrnn.speed.timing import Call, Timing, environment, interleave, using_threads

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 200
# Updates that a process has been told of before the first of their answers is read.
AHEAD = 500


@dataclass(frozen=True)
class Sizes:
    """A model and a batch: layers of each side, width, rows, characters a side."""

    layers: int = 4
    hidden: int = 256
    rows: int = 20
    source: int = 76
    target: int = 66

    @property
    def characters(self) -> int:
        """Characters of an update, padding included."""
        return self.rows * (self.source + self.target)


@dataclass(frozen=True)
class Plan:
    """The sizes that one run measures."""

    update: Sizes = Sizes()
    lengths: tuple[int, ...] = (100, 300, 1000)
    tokens: int = 3000  # a side, in the comparison by length
    paper: Sizes = Sizes(layers=4, hidden=320, rows=16, source=103, target=93)
    memory: Sizes = Sizes(layers=3, hidden=128, rows=32, source=80, target=80)
    memory_updates: int = 1000


TINY = Sizes(1, 16, 4, 6, 5)
PLANS = {
    "goals": Plan(),
    "smoke": Plan(TINY, (8,), 16, Sizes(1, 16, 2, 6, 5), TINY, 20),
}


# ------------------------------------------------------------------ models and updates


def modern(sizes: Sizes) -> nn.Module:
    """Make the modern preset (scripts/configs/translation_modern.yaml) in these sizes."""
    return QRNNForConditionalGeneration(
        QRNNConfig(
            vocab_size=VOCABULARY,
            embedding_size=sizes.hidden,
            hidden_size=sizes.hidden,
            encoder_layers=sizes.layers,
            decoder_layers=sizes.layers,
            encoder_kernel_sizes=[4, *[2] * (sizes.layers - 1)],
            encoder_bidirectional=True,
            reverse_source=False,
            residual=True,
            rms_norm=True,
            attention_layers="all",
            num_attention_heads=4,
            attention_scaling=True,
            dropout=0.1,
        )
    )


def paper(sizes: Sizes) -> nn.Module:
    """Make the paper's translation model in these sizes."""
    return QRNNForConditionalGeneration(
        QRNNConfig(
            vocab_size=VOCABULARY,
            embedding_size=sizes.hidden,
            hidden_size=sizes.hidden,
            encoder_layers=sizes.layers,
            decoder_layers=sizes.layers,
        )
    )


def marian(sizes: Sizes, parameters: int) -> nn.Module:
    """Make a Transformer of the same width and number of layers, and of `parameters` about.

    The width of its feed-forward layers is what the number of parameters decides.
    """

    def of(width: int) -> MarianMTModel:
        config = MarianConfig(
            vocab_size=VOCABULARY,
            d_model=sizes.hidden,
            encoder_layers=sizes.layers,
            decoder_layers=sizes.layers,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=width,
            decoder_ffn_dim=width,
            max_position_embeddings=2048,
            dropout=0.1,
            attention_dropout=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
            scale_embedding=True,
        )
        return MarianMTModel(config)

    least, more = (sum(p.numel() for p in of(width).parameters()) for width in (16, 32))
    each = (more - least) / 16
    return of(max(16, 16 + round((parameters - least) / each / 16) * 16))


def make_batch(sizes: Sizes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make random ids, the rows a little shorter than the batch, as sorted lengths leave them."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(4, VOCABULARY, (sizes.rows, length), generator=generator)

    batch = {"input_ids": ids(sizes.source), "labels": ids(sizes.target)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    for row in range(0, sizes.rows, 2):
        batch["attention_mask"][row, -max(1, sizes.source // 20) :] = 0
        batch["labels"][row, -max(1, sizes.target // 20) :] = -100
    return batch


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of every update here."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def update(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    dtype: str,
    optimizer: torch.optim.Optimizer | None = None,
) -> Call:
    """Make the call of one update, by an optimiser of its own where none is given."""
    model.train()
    optimizer = adamw(model) if optimizer is None else optimizer
    ours = isinstance(model, QRNNForConditionalGeneration)

    def step() -> None:
        with torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "float32"):
            if ours:
                loss = model(**batch, smoothing=0.1).loss
            else:
                logits = model(**batch).logits
                labels = batch["labels"]
                if logits.shape[0] != labels.shape[0]:  # time first
                    labels = labels.t()
                loss = nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=0.1
                )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


# ------------------------------------------------------------------ bare products


class _Products(TorchDispatchMode):
    """Collects the shapes of all matrix products, (batch, M, K, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        pair = {"mm": args[:2], "addmm": args[1:3], "bmm": args[:2], "baddbmm": args[1:3]}.get(name)
        if pair is not None:
            a, b = pair
            batch = a.shape[0] if a.dim() == 3 else 1
            self.shapes.append((batch, a.shape[-2], a.shape[-1], b.shape[-1]))
        return func(*args, **(kwargs or {}))


def bare_products(model: nn.Module, batch: dict[str, torch.Tensor], dtype: str) -> Call:
    """Make the call that computes nothing but an update's products; attention's are explicit."""
    model.set_attn_implementation("eager")  # type: ignore[operator]
    mode = _Products()
    with mode:
        update(model, batch, "float32")()
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    made = []
    for number, m, k, n in mode.shapes:
        sizes = ((number, m, k), (number, k, n)) if number > 1 else ((m, k), (k, n))
        a, b = (torch.randn(size).to(DTYPES[dtype]) for size in sizes)
        made.append((torch.bmm if number > 1 else torch.mm, a, b))

    def call() -> None:
        for multiply, a, b in made:
            multiply(a, b)

    return call


# ------------------------------------------------------------------ comparisons in this process


def _fields(bench: str, peer: str, dtype: str, sizes: Sizes) -> Record:
    about = {"bench": bench, "peer": peer, "device": "cpu", "dtype": dtype}
    return {**about, "threads": torch.get_num_threads(), **asdict(sizes)}


def _speeds(sizes: Sizes, ours: Timing, theirs: Timing) -> Record:
    return {
        "characters_per_second": round(sizes.characters / ours.median),
        "peer_characters_per_second": round(sizes.characters / theirs.median),
        **versus(ours, theirs),
    }


def against_products(sizes: Sizes, dtype: str, seconds: float) -> Record:
    """Time an update over its bare products; `over` is what the goal bounds."""
    torch.manual_seed(0)
    model, batch = modern(sizes), make_batch(sizes)
    calls = {"products": bare_products(model, batch, dtype), "qrnn": update(model, batch, dtype)}
    found = interleave(calls, seconds=seconds)
    figures = versus(found["qrnn"], found["products"])
    over = {"over": round(1 / figures["ratio"], 3)}
    return {**_fields("update", "products", dtype, sizes), **figures, **over}


def against_marian(sizes: Sizes, dtype: str, seconds: float) -> Record:
    """Time an update against that of a Transformer of as many parameters."""
    torch.manual_seed(0)
    ours, batch = modern(sizes), make_batch(sizes)
    number = sum(p.numel() for p in ours.parameters())
    theirs = marian(sizes, number)
    calls = {"qrnn": update(ours, batch, dtype), "marian": update(theirs, batch, dtype)}
    found = interleave(calls, seconds=seconds)
    counts = {"parameters": number, "peer_parameters": sum(p.numel() for p in theirs.parameters())}
    about = _fields("training", "Marian", dtype, sizes)
    return {**about, **counts, **_speeds(sizes, found["qrnn"], found["marian"])}


def against_lstm(sizes: Sizes, dtype: str, seconds: float) -> Record:
    """Time an update of the paper's model against the same with LSTM layers."""
    torch.manual_seed(0)
    batch = make_batch(sizes)
    control = LSTMTranslator(VOCABULARY, sizes.hidden, sizes.layers)
    # It knows neither pads nor ignored labels.
    batch = {"input_ids": batch["input_ids"], "labels": batch["labels"].clamp(min=0)}
    calls = {
        "qrnn": update(paper(sizes), batch, dtype),
        "lstm": update(control, batch, dtype),
    }
    found = interleave(calls, seconds=seconds)
    about = _fields("training", "nn.LSTM", dtype, sizes)
    return {**about, **_speeds(sizes, found["qrnn"], found["lstm"])}


# ------------------------------------------------------------------ processes of their own


class Worker:
    """A process that does `role` by the package in `folder`, a step for each line it is sent."""

    def __init__(self, folder: Path, sizes: Sizes, dtype: str, role: str = "work") -> None:
        threads = str(torch.get_num_threads())
        words = [sys.executable, str(Path(__file__).resolve()), f"--{role}", dtype, threads]
        path = os.pathsep.join([str(folder.resolve()), str(ROOT / "benchmarks")])
        self.process = subprocess.Popen(
            [*words, json.dumps(asdict(sizes))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )

    def ask(self, words: str) -> Any:
        """Send one line, and return the JSON of the answer."""
        self.tell(words)
        return self.answer()

    def tell(self, words: str) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the answer to a line, and return its JSON."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended with {self.process.wait()}.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate("")


def work(dtype: str, threads: str, sizes: str) -> None:
    """Make an update for each line of stdin, and tell its seconds."""
    torch.set_num_threads(int(threads))
    own = Sizes(**json.loads(sizes))
    torch.manual_seed(0)
    step = update(modern(own), make_batch(own), dtype)
    for _ in sys.stdin:
        started, began = time.perf_counter(), time.process_time()
        step()
        seconds = time.perf_counter() - started, time.process_time() - began
        print(json.dumps(seconds), flush=True)


def watch(dtype: str, threads: str, sizes: str) -> None:
    """Make an update of the shape that each line names, as training does, and tell its memory."""
    from hf_qrnn.training.memory import bound_kernel_caches, give_back

    bound_kernel_caches()
    torch.set_num_threads(int(threads))
    own = Sizes(**json.loads(sizes))
    torch.manual_seed(0)
    model = modern(own)
    optimizer = adamw(model)
    for step, line in enumerate(sys.stdin, start=1):
        rows, source, target = map(int, line.split())
        shape = replace(own, rows=rows, source=source, target=target)
        began = time.process_time()
        update(model, make_batch(shape), dtype, optimizer)()
        give_back(step)
        print(json.dumps([resident_megabytes(), time.process_time() - began]), flush=True)


def resident_megabytes() -> float:
    """Return this process's memory in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def against_baseline(
    folder: Path, sizes: Sizes, dtype: str, baseline_dtype: str, rounds: int
) -> Record:
    """Time an update by this checkout against one by another, each in its process."""
    workers = [Worker(ROOT, sizes, dtype), Worker(folder, sizes, baseline_dtype)]
    times: list[list[tuple[float, float]]] = [[], []]
    try:
        for number in range(rounds + 2):
            for worker, own in zip(workers, times, strict=True):
                seconds = worker.ask("update")
                if number > 1:
                    own.append(seconds)
    finally:
        for worker in workers:
            worker.close()
    ours, theirs = (Timing(*zip(*own, strict=True)) for own in times)
    about = _fields("training", f"before, {baseline_dtype}", dtype, sizes)
    return {**about, **_speeds(sizes, ours, theirs)}


def memory(sizes: Sizes, dtypes: list[str], updates: int) -> Iterator[Record]:
    """Watch memory over updates of random lengths, padded as training pads them.

    The dtypes go side by side, each in its process, and bfloat16 is held beside float32.
    """
    workers = {dtype: Worker(ROOT, sizes, dtype, "watch") for dtype in dtypes}
    draw, characters = random.Random(0), 0
    most = sizes.rows * max(sizes.source, sizes.target)
    answers: dict[str, list[tuple[float, float]]] = {dtype: [] for dtype in dtypes}
    lines = []
    for _ in range(updates):
        source, target = (4 * draw.randint(1, sizes.source // 3) for _ in range(2))
        rows = max(1, most // max(source, target))
        rows = rows // 4 * 4 or rows
        characters += rows * (source + target)
        lines.append(f"{rows} {source} {target}")
    try:
        for number in range(updates + AHEAD):
            for dtype, worker in workers.items():
                if number < updates:
                    worker.tell(lines[number])
                if number >= AHEAD:
                    answers[dtype].append(worker.answer())
    finally:
        for worker in workers.values():
            worker.close()
    peaks = {}
    for dtype, found in answers.items():
        megabytes, seconds = zip(*found, strict=True)
        peaks[dtype] = max(megabytes)
        tenth = max(1, updates // 10)
        first, last = statistics.mean(megabytes[:tenth]), statistics.mean(megabytes[-tenth:])
        yield {
            **_fields("memory", "its first tenth", dtype, sizes),
            **{"updates": updates, "first_mb": round(first), "last_mb": round(last)},
            **{"peak_mb": round(max(megabytes)), "growth": round(last / first, 3)},
            "characters_per_second": round(characters / sum(seconds)),  # of the processor's time
        }
    if {"float32", "bfloat16"} <= peaks.keys():
        over = round(peaks["bfloat16"] / peaks["float32"], 3)
        yield {**_fields("memory", "float32", "bfloat16", sizes), "over": over}


# ------------------------------------------------------------------ running


def measure(options: argparse.Namespace) -> Iterator[Record]:
    """Measure everything that the options ask for."""
    plan = PLANS[options.plan]
    yield {"bench": "environment", **environment("cpu"), "command": sys.argv[1:]}
    dtypes = options.dtypes or ["float32", "bfloat16"]
    for threads in options.threads:
        with using_threads(threads):
            for dtype in () if options.memory_only else dtypes:
                yield from measure_dtype(plan, dtype, options)
            if options.memory or options.memory_only:
                yield from memory(plan.memory, dtypes, plan.memory_updates)


def measure_dtype(plan: Plan, dtype: str, options: argparse.Namespace) -> Iterator[Record]:
    """Measure all comparisons of speed in one dtype."""
    yield against_products(plan.update, dtype, options.seconds)
    if options.baseline is not None:
        rounds = max(5, int(options.seconds))
        for before in dict.fromkeys(("float32", dtype)):
            yield against_baseline(options.baseline, plan.update, dtype, before, rounds)
    for length in plan.lengths:
        rows = max(1, plan.tokens // length)
        sizes = replace(plan.update, rows=rows, source=length, target=length)
        yield against_marian(sizes, dtype, options.seconds)
    yield against_lstm(plan.paper, dtype, options.seconds)


def make_parser() -> argparse.ArgumentParser:
    """Make the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "bench_training", threads=[1])
    add = parser.add_argument
    add("--plan", default="goals", choices=PLANS, help="sizes: the goals', or tiny ones (goals)")
    add("--baseline", type=Path, help="another checkout of hf_qrnn to compare with")
    add("--memory", action="store_true", help="watch memory over updates of random lengths too")
    add("--memory_only", action="store_true", help="watch memory, and measure no speed")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print and judge; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    roles = {"--work": work, "--watch": watch}
    if words and words[0] in roles:
        roles[words[0]](*words[1:])
        return 0
    parser = make_parser()
    return run(parser, parser.parse_args(argv), measure)


if __name__ == "__main__":
    end_process(main)
