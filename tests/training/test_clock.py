"""hf_qrnn.training.clock: training counts; validations and pauses of the process do not."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest
from training_script import flags, start, suspend, wait_until

from hf_qrnn.training.clock import LIMIT, TICK, Stopwatch


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
    fake, looked = FakeTime(), threading.Event()

    def later() -> float:
        """Half of what nobody may miss passes between two looks, however late they come."""
        fake.seconds += LIMIT / 2
        if fake.seconds > 100.0 + 4 * LIMIT:
            looked.set()
        return fake.seconds

    watch = Stopwatch(later)
    with watch:
        assert looked.wait(60.0), "nobody looked"
    # Neither the making of the watch nor its start counts.
    begun = 100.0 + 2 * LIMIT / 2
    assert watch.take() == pytest.approx(fake.seconds - begun)


def test_a_stopped_process_does_not_use_its_minutes(tmp_path: Path) -> None:
    """SIGSTOP for longer than `--max_minutes`, then SIGCONT."""
    budget = {"max_minutes": 0.05, "max_steps": 10**6, "eval_every": 10**6, "save_every": 0}
    process = start(flags(tmp_path, num_threads=1, **budget))
    log = tmp_path / "out/metrics.jsonl"
    try:
        wait_until(lambda: log.is_file() and log.read_text().count("\n") > 5, process)
        suspend(process)
        before = log.read_text().count("\n")
        time.sleep(4.0)  # longer than the 3 s that there are
        process.send_signal(signal.SIGCONT)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, error
    records = [json.loads(line) for line in log.read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert len(train) > before + 10
    # Were the pause counted, no fewer than its 4 s.
    assert 3.0 <= train[-1]["seconds"] < 4.0
