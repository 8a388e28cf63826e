#!/usr/bin/env python
"""Measure what the training loop adds to the model's time, a checkpoint's time, and tokens/s.

    python benchmarks/bench_loop.py --out benchmarks/results/training.json

Rounds of updates by a bare loop (forward, backward, optimiser step on batches already padded) take
turns with rounds by `Trainer` (loader, sharing, clipping, watching, logging) on the same batches.
Seconds are wall-clock time and this process's CPU time; the latter is more reliable on a machine
that does other work too.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from ending import end_process

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.data.batching import Batch, BucketBatchSampler, encode_pairs, make_loader
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.tokenization import encode_batch, train_character_tokenizer
from hf_qrnn.training.checkpoint import CheckpointFolder
from hf_qrnn.training.loop import LoopOptions, Trainer
from hf_qrnn.training.optimizers import make_optimizer
from hf_qrnn.training.run_folder import RunFolder, write_lines


@dataclass
class Clock:
    """Seconds of the clock and of this process."""

    wall: float = 0.0
    process: float = 0.0

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Add the seconds of the block, work queued on a GPU included."""
        started = time.perf_counter(), time.process_time()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.wall += time.perf_counter() - started[0]
        self.process += time.process_time() - started[1]


def make_pairs(count: int) -> list[TextPair]:
    """Generate sentences, three joined to a line of about 100 characters a side."""
    sys.path.append(str(Path(__file__).parents[1]))  # the demo is no part of the package
    from demo.corpus.corpus import make_corpus

    corpus = make_corpus(num_train=3 * count, seed=0).train
    groups = zip(corpus[::3], corpus[1::3], corpus[2::3], strict=True)
    return [
        TextPair(" ".join(x.source for x in group), " ".join(x.target for x in group))
        for group in groups
    ]


def make_trainer(options: argparse.Namespace, pairs: list[TextPair], folder: Path) -> Trainer:
    """Make the trainer of the script, on the paper's 4 x 320 unless told otherwise."""
    tokenizer = train_character_tokenizer(text for x in pairs for text in (x.source, x.target))
    encoded = encode_pairs(tokenizer, pairs)
    torch.manual_seed(0)
    config = QRNNConfig(
        vocab_size=len(tokenizer),
        embedding_size=options.hidden_size,
        hidden_size=options.hidden_size,
        encoder_layers=options.layers,
        decoder_layers=options.layers,
    )
    accelerator = Accelerator(cpu=options.cpu, mixed_precision=options.mixed_precision)
    sampler = BucketBatchSampler(encoded, max_tokens=options.max_tokens)
    run_folder = RunFolder(folder, is_main_process=True, draw_curve=lambda records, path: None)
    run_folder.begin()
    return Trainer(
        QRNNForConditionalGeneration(config),
        make_loader(encoded, sampler, pad_token_id=0),
        sampler,
        # Neither validation nor saves: those have their own figures.
        LoopOptions(max_steps=1, max_tokens=options.max_tokens, eval_every=10**9, save_every=0),
        accelerator,
        chars_per_token=(1.0, 1.0),
        log=run_folder.log,
        validate=lambda step: (0.0, {}),
        save_best=lambda: None,
    )


def bare_updates(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    accelerator: Accelerator,
) -> None:
    """Run forward, backward and step, and nothing else."""
    model.train()
    for batch in batches:
        inputs = {name: x.to(accelerator.device) for name, x in batch.inputs.items()}
        with accelerator.autocast():
            loss = model(**inputs, num_items_in_batch=batch.num_target_tokens).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def bench_loop(trainer: Trainer, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the steps a second of both loops over the same batches."""
    count, device = options.updates, trainer.accelerator.device
    batches = list(trainer.loader)[: count * (options.rounds + 1)]
    if len(batches) < count * (options.rounds + 1):
        raise ValueError(f"`pairs` must give more batches than {len(batches)}.")
    optimizer = make_optimizer(trainer.model, trainer.options)
    bare, whole = Clock(), Clock()
    for number in range(options.rounds + 1):
        clocks = (bare, whole) if number > 0 else (Clock(), Clock())  # the first warms up
        own = batches[number * count : (number + 1) * count]
        with clocks[0].running(device):
            bare_updates(trainer.model, optimizer, own, trainer.accelerator)
        trainer.max_steps = (number + 1) * count
        with clocks[1].running(device):
            trainer.train()
    steps = count * options.rounds
    chars = sum(x.num_source_tokens + x.num_target_tokens for x in batches[count:]) / steps
    return {
        "updates": steps,
        "characters_per_update": round(chars),
        "model_steps_per_second": {k: round(steps / v, 4) for k, v in vars(bare).items()},
        "script_steps_per_second": {k: round(steps / v, 4) for k, v in vars(whole).items()},
        "loop_cost_percent": {
            k: round(100 * (1 - vars(bare)[k] / vars(whole)[k]), 2) for k in vars(bare)
        },
    }


def bench_checkpoint(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Measure seconds and megabytes of one checkpoint, checksums and disk flushes included."""
    trainer.checkpoints = CheckpointFolder(folder / "checkpoints")
    started = time.perf_counter()
    trainer._save(None)
    seconds = time.perf_counter() - started
    files = (folder / "checkpoints").rglob("*.*")
    return {
        "seconds": round(seconds, 3),
        "megabytes": round(sum(path.stat().st_size for path in files if path.is_file()) / 1e6, 1),
    }


def bench_tokenization(pairs: list[TextPair]) -> dict[str, Any]:
    """Count the characters that a core turns into ids in a second."""
    texts = [text for pair in pairs for text in (pair.source, pair.target)]
    tokenizer = train_character_tokenizer(texts)
    repeated = texts * (1 + 2_000_000 // sum(map(len, texts)))
    encode_batch(tokenizer, texts[:1000])
    started = time.process_time()
    encode_batch(tokenizer, repeated)
    used = time.process_time() - started
    characters = sum(map(len, repeated))
    return {"characters": characters, "characters_per_core_second": round(characters / used)}


def command(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Write the command of the same measurement: every flag that is not at its default."""
    words = ["python benchmarks/bench_loop.py"]
    for name, value in vars(options).items():
        if value != parser.get_default(name) and name != "out":
            words.append(f"--{name}" if value is True else f"--{name} {value}")
    return " ".join(words)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden_size", type=int, default=320, help="units (320)")
    parser.add_argument(
        "--layers", type=int, default=4, help="layers of encoder and decoder each (4)"
    )
    parser.add_argument(
        "--max_tokens",
        type=int,
        default=1600,
        help="padded tokens of a batch, on either side (1600)",
    )
    parser.add_argument(
        "--mixed_precision", default="no", choices=["no", "bf16"], help="bf16 for autocast (no)"
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU, though there is a GPU")
    parser.add_argument("--pairs", type=int, default=2000, help="number of random pairs (2000)")
    parser.add_argument("--updates", type=int, default=4, help="updates of a round (4)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each loop, in turns (4)")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    pairs = make_pairs(options.pairs)
    with tempfile.TemporaryDirectory() as name:
        trainer = make_trainer(options, pairs, Path(name))
        device = trainer.accelerator.device
        report = {
            "command": command(options, parser),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "loop": bench_loop(trainer, options),
            "checkpoint": bench_checkpoint(trainer, Path(name)),
            "tokenization": bench_tokenization(pairs),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out is not None:
        write_lines(options.out, [text])
    return 0


if __name__ == "__main__":
    end_process(main)
