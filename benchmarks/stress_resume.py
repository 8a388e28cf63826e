#!/usr/bin/env python
"""Kill training with SIGKILL at random moments, resume it, and compare it with a run left alone.

    python benchmarks/stress_resume.py --kills 5

Every trial is a small run of scripts/train_translation.py with dropout, zoneout and accumulation,
in turn in one to three processes, in float32 and bfloat16, with 0 and 2 loader workers. Every third
kill falls into the writing of a checkpoint. A trial is equal when every logged loss and the SHA-256
of the final weights are those of the run left alone. The last line says "N of N equal"; any other
count exits with 1. The runs are forked from one process that has imported everything.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ending import end_process

from hf_qrnn.training.run_folder import write_lines

ROOT = Path(__file__).parents[1]
SEARCH_SECONDS, RUN_SECONDS = 300.0, 600.0


@dataclass(frozen=True)
class Case:
    """The settings of a run that differ from trial to trial."""

    processes: int = 1
    precision: str = "no"
    workers: int = 0
    blocks: bool = False  # residuals, norms, attention everywhere, feed-forward blocks

    def __str__(self) -> str:
        text = f"{self.processes} process(es), {self.precision}, {self.workers} worker(s)"
        return text + (", blocks" if self.blocks else "")


# The first four see every value of every field, and blocks in either precision.
CASES = [Case(1, "no", 2), Case(2, "bf16", 2, True), Case(1, "bf16", 0), Case(2, "no", 0, True)]
CASES += [Case(3, "no", 0), Case(1, "no", 0, True), Case(2, "bf16", 0), Case(1, "bf16", 2, True)]
CASES += [Case(2, "no", 2)]
BLOCKS = {"residual": True, "rms_norm": True, "attention_layers": "all", "feed_forward_size": 32}


def load_script() -> Callable[[list[str]], int]:
    """Load the `main` of scripts/train_translation.py."""
    path = ROOT / "scripts/train_translation.py"
    spec = importlib.util.spec_from_file_location("train_translation", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


def write_data(folder: Path) -> None:
    """Write strings and their reversals."""
    generator = random.Random(0)
    for name, count in (("train", 300), ("valid", 16)):
        lines = [
            "".join(generator.choice("abcdefgh") for _ in range(generator.randrange(1, 20)))
            for _ in range(count)
        ]
        write_lines(folder / f"{name}.a", lines)
        write_lines(folder / f"{name}.b", [line[::-1] for line in lines])


def flags(data: Path, out: Path, case: Case, steps: int) -> list[str]:
    """Write the command line of a run: dropout and zoneout on, two batches an update."""
    options: dict[str, Any] = {
        **{f"{split}_source": data / f"{split}.a" for split in ("train", "valid")},
        **{f"{split}_target": data / f"{split}.b" for split in ("train", "valid")},
        **{"hidden_size": 24, "embedding_size": 16, "encoder_layers": 2, "decoder_layers": 2},
        **{"dropout": 0.2, "zoneout": 0.1, "label_smoothing": 0.1, "learning_rate": 5e-3},
        **{"max_tokens": 256, "gradient_accumulation_steps": 2, "max_steps": steps},
        **{"save_every": 3, "eval_every": 10, "log_every": 1, "eval_sentences": 4},
        **{"output_dir": out, "seed": 3, "num_threads": 1, "resume": "auto"},
        **{"mixed_precision": case.precision, "num_workers": case.workers},
        "expect_world_size": case.processes,
        **(BLOCKS if case.blocks else {}),
    }
    return ["--cpu", *(text for k, v in options.items() for text in (f"--{k}", str(v)))]


def fork_run(main: Callable[[list[str]], int], argv: list[str], case: Case, log: Path) -> list[int]:
    """Start the processes of a run and return their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    # Forked, not started: importing torch would take longer than the run.
    for rank in range(case.processes):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)  # a group of its own, to be killed with its loader workers
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if case.processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(case.processes), "MASTER_PORT": str(port)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(case.processes)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1"}
            status = 1
            try:
                status = main(argv)
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    return pids


def has_ended(pids: list[int]) -> bool:
    """Tell whether the first process is dead, and leave it to be waited for."""
    return os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(pids: list[int]) -> None:
    """Send SIGKILL to all, loader workers included."""
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for pid in pids:
        os.waitpid(pid, 0)


def finish(pids: list[int], log: Path) -> None:
    """Wait for the end of a run, which must be a good one."""
    deadline = time.monotonic() + RUN_SECONDS
    for pid in pids:
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                kill([pid])
                raise RuntimeError(f"a run took over {RUN_SECONDS:.0f} s:\n{log.read_text()}")
            time.sleep(0.02)
        if os.waitstatus_to_exitcode(ended[1]) != 0:
            raise RuntimeError(f"a run failed:\n{log.read_text()}")


def updates(out: Path) -> int:
    """Count the updates that a run has logged."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b'"kind": "train"') if path.is_file() else 0


def kill_at(pids: list[int], out: Path, step: int, delay: float, in_save: bool) -> None:
    """Kill after `step` updates and `delay` seconds, or in the next writing of a checkpoint."""
    deadline = time.monotonic() + SEARCH_SECONDS
    while updates(out) < step and not has_ended(pids) and time.monotonic() < deadline:
        time.sleep(0.005)
    if in_save:
        folder = out / "checkpoints"
        while not any(folder.glob(".writing-*")) and not has_ended(pids):
            time.sleep(0.0005)
    else:
        time.sleep(delay)
    kill(pids)


def outcome(out: Path) -> tuple[str, list[tuple[int, float]]]:
    """Return the hash of the final weights, and every training loss by step."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    losses = [(x["step"], x["loss"]) for x in records if x["kind"] in ("train", "valid")]
    ended = json.loads((out / "training.json").read_text(encoding="utf-8"))
    return ended["weights_sha256"], losses


def trial(
    main: Callable[[list[str]], int], folder: Path, case: Case, choose: random.Random, in_save: bool
) -> dict[str, Any]:
    """Kill and resume one run, and compare it with the run of its case that was left alone."""
    steps, data, out = 24, folder / "data", folder / "killed"
    alone = folder / f"alone-{case.processes}-{case.precision}-{case.workers}-{case.blocks}"
    log = folder / "log"
    if not (alone / "training.json").exists():
        finish(fork_run(main, flags(data, alone, case, steps), case, log), log)
    shutil.rmtree(out, ignore_errors=True)
    step, delay = choose.randrange(steps - 4), choose.uniform(0.0, 0.1)
    argv = flags(data, out, case, steps)
    kill_at(fork_run(main, argv, case, log), out, step, delay, in_save)
    killed_after = updates(out)
    in_writing = any((out / "checkpoints").glob(".writing-*"))
    finish(fork_run(main, argv, case, log), log)
    return {
        **asdict(case),
        "killed_after_update": killed_after,
        "killed_in_a_save": in_writing,
        "equal": outcome(out) == outcome(alone),
        "weights_sha256": outcome(out)[0],
    }


def main() -> int:
    """Run the trials; return 0 when all are equal."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=5, help="number of trials, one kill each (5)")
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of the moments of the kills (from the clock)"
    )
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    started = time.monotonic()
    script = load_script()
    seed = time.time_ns() % 10**6 if options.seed is None else options.seed
    choose = random.Random(seed)
    trials = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        write_data(folder / "data")
        for number in range(options.kills):
            case, in_save = CASES[number % len(CASES)], number % 3 == 1
            trials.append(trial(script, folder, case, choose, in_save=in_save))
            last = trials[-1]
            where = " in a save" if last["killed_in_a_save"] else ""
            word = "equal" if last["equal"] else "DIFFERENT"
            after = last["killed_after_update"]
            print(f"{number + 1}: {case}, killed after update {after}{where}: {word}", flush=True)
    equal = sum(result["equal"] for result in trials)
    report = {
        "command": f"python benchmarks/stress_resume.py --kills {options.kills} --seed {seed}",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "seconds": round(time.monotonic() - started, 1),
        "trials": trials,
        "equal": equal,
        "killed_in_a_save": sum(result["killed_in_a_save"] for result in trials),
    }
    if options.out is not None:
        write_lines(options.out, [json.dumps(report, indent=1)])
    print(f"{equal} of {len(trials)} equal")
    return 0 if equal == len(trials) else 1


if __name__ == "__main__":
    end_process(main)
