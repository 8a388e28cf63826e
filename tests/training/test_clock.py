"""hf_qrnn.training.clock: training counts; validations and pauses of the process do not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_qrnn.training.clock import LIMIT, TICK, Stopwatch

ROOT = Path(__file__).parents[2]


class FakeTime:
    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def run(self, watch: Stopwatch, seconds: float) -> None:
        """Let time pass while the watch's thread looks, as it does in a process that runs."""
        for _ in range(round(seconds / TICK)):
            self.seconds += TICK
            watch.look()


def test_a_long_update_counts_and_a_pause_does_not() -> None:
    fake = FakeTime()
    watch = Stopwatch(fake.now)
    fake.run(watch, 30.0)
    assert watch.take() == pytest.approx(30.0)
    assert watch.take() == 0.0
    fake.run(watch, 2.0)
    fake.seconds += 3600.0  # stopped: nobody looks
    watch.look()
    fake.run(watch, 2.0)
    assert watch.take() == pytest.approx(4.0)
    fake.seconds += LIMIT / 2  # a thread that waited for its turn
    assert watch.take() == pytest.approx(LIMIT / 2)


def test_what_is_held_does_not_count() -> None:
    fake = FakeTime()
    watch = Stopwatch(fake.now)
    fake.run(watch, 1.0)
    with watch.held():
        fake.run(watch, 50.0)
    fake.run(watch, 1.0)
    assert watch.take() == pytest.approx(2.0)


def test_the_thread_looks_while_the_main_one_waits() -> None:
    with Stopwatch() as watch:
        before = time.monotonic()
        time.sleep(1.5 * LIMIT)
        passed = time.monotonic() - before
        assert watch.take() == pytest.approx(passed, abs=0.2)


def test_a_stopped_process_does_not_use_its_minutes(tmp_path: Path) -> None:
    """SIGSTOP for longer than `--max_minutes`, then SIGCONT."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(f"{'ab' * (i % 5)}c\n" for i in range(60)))
    sizes = ["--hidden_size", "8", "--embedding_size", "8", "--encoder_layers", "1"]
    process = subprocess.Popen(
        [
            *(sys.executable, ROOT / "scripts/train_translation.py", "--cpu", *sizes),
            *("--train_source", "a", "--train_target", "b", "--valid_source", "a"),
            *("--valid_target", "b", "--output_dir", "out", "--max_minutes", "0.05"),
            *("--max_steps", "1000000", "--eval_every", "1000000", "--log_every", "1"),
            *("--decoder_layers", "1", "--max_tokens", "64", "--eval_sentences", "0"),
            *("--save_every", "0", "--num_threads", "1"),
        ],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    log, deadline = tmp_path / "out/metrics.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > 5):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    before = log.read_text().count("\n")
    time.sleep(4.0)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=120) == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert len(train) > before + 10
    assert 3.0 <= train[-1]["seconds"] < 4.0
