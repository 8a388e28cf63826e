"""hf_qrnn.speed.timing: turns, counts of rounds, paired ratios, the copy rate, the record."""

import importlib.metadata
import json
import time

import pytest
import torch

from hf_qrnn.speed import timing
from hf_qrnn.speed.timing import Timing, interleave, stream_copy, times_as_fast, using_threads


def test_calls_take_turns_after_warming_up() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    found = interleave(calls, seconds=0.0, min_rounds=3)
    assert "".join(order) == "abc" + "abc" * 3
    assert {name: len(t.seconds) for name, t in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_who_is_warm_is_not_warmed_up() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    interleave(calls, seconds=0.0, min_rounds=1, warm=True)
    assert "".join(order) == "ab"


class Clock:
    """Stands in for the module `time`: a busy machine changes no result."""

    def __init__(self) -> None:
        self.now = self.busy = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.busy

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def compute(self, seconds: float) -> None:
        self.now += seconds
        self.busy += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_seconds_are_those_of_each_call(clock: Clock) -> None:
    calls = {"short": lambda: clock.compute(0.25), "long": lambda: clock.compute(2.0)}
    found = interleave(calls, seconds=0.0, min_rounds=3)
    assert found["short"].seconds == (0.25,) * 3
    assert found["long"].seconds == (2.0,) * 3
    assert times_as_fast(found["short"], found["long"]) == 8.0


def test_the_budget_ends_the_rounds(clock: Clock) -> None:
    found = interleave({"a": lambda: clock.compute(1.0)}, seconds=6.5, min_rounds=2)
    assert len(found["a"].seconds) == 7


def test_real_clocks_measure() -> None:
    found = interleave({"wait": lambda: time.sleep(0.01)}, seconds=0.0, min_rounds=2)["wait"]
    assert found.minimum >= 0.01
    assert len(found.busy) == 2


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 2), (10.0, 7)])
def test_rounds_end_by_time_or_number(seconds: float, rounds: int) -> None:
    found = interleave({"a": lambda: None}, seconds=seconds, min_rounds=2, max_rounds=7)
    assert len(found["a"].seconds) == rounds


@pytest.mark.parametrize("options", [{"min_rounds": 0}, {"min_rounds": 3, "max_rounds": 2}])
def test_no_rounds_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="`min_rounds` must be at least 1"):
        interleave({"a": lambda: None}, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`calls`"):
        interleave({})


def test_figures_of_a_timing() -> None:
    found = Timing((4.0, 1.0, 2.0))
    assert (found.minimum, found.median) == (1.0, 2.0)
    assert found.split(2) == Timing((2.0, 0.5, 1.0))
    assert Timing((4.0, 2.0), (1.0, 3.0)).split(2).computing == Timing((0.5, 1.5))


def test_waiting_is_not_computing(clock: Clock) -> None:
    def call() -> None:
        clock.wait(2.0)
        clock.compute(0.5)

    found = interleave({"both": call}, seconds=0.0, min_rounds=2)["both"]
    assert found.seconds == (2.5, 2.5)
    assert found.computing.seconds == (0.5, 0.5)


def test_ratio_is_that_of_pairs() -> None:
    # Whatever slows a round down slows both calls of it: the ratio stays 2.
    ours, theirs = Timing((1.0, 10.0, 1.0)), Timing((2.0, 20.0, 2.0))
    assert times_as_fast(ours, theirs) == 2.0
    # One call that was hit alone does not count.
    assert times_as_fast(ours, Timing((2.0, 20.0, 90.0))) == 2.0
    with pytest.raises(ValueError, match="zip"):
        times_as_fast(ours, Timing((1.0,)))


def test_copy_copies_and_counts_bytes_read_and_written() -> None:
    copy = stream_copy(num_bytes=1 << 20)
    target = copy.call()
    assert isinstance(target, torch.Tensor)
    assert target.dtype == torch.float32
    assert torch.equal(target, torch.ones(1 << 17))
    assert copy.num_bytes == 1 << 20  # half of it read, half written
    assert copy.rate(Timing((1e-3,))) == pytest.approx((1 << 20) / 1e6)


def test_data_is_beyond_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timing.beyond_caches() >= 256 << 20
    assert timing.last_level_cache() >= 0
    monkeypatch.setattr(timing, "last_level_cache", lambda device: 1 << 30)
    assert timing.beyond_caches() == 4 << 30


def test_threads_are_those_before_again() -> None:
    before = torch.get_num_threads()
    inside = []

    def fails() -> None:
        with using_threads(before + 1):
            inside.append(torch.get_num_threads())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert inside == [before + 1]
    assert torch.get_num_threads() == before
    with using_threads(None):
        assert torch.get_num_threads() == before


def test_environment_says_what_could_explain_a_number() -> None:
    record = json.loads(json.dumps(timing.environment()))
    assert record["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["cores"] == timing.available_cores() >= 1
    assert all(record[name] for name in ("cpu", "cpu_capability", "python", "date", "hf_qrnn"))


def test_a_clone_that_is_not_installed_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert timing.environment()["hf_qrnn"] == "not installed"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_graph_and_events_on_a_gpu() -> None:
    x = torch.zeros(1, device="cuda")
    replay = timing.captured(lambda: x.add_(1))
    x.zero_()
    found = interleave({"graph": replay, "copy": stream_copy("cuda").call}, device="cuda")
    # Three calls to warm up, then one in every round: the graph does what the call does.
    assert x.item() == 3 + len(found["graph"].seconds)
    assert found["graph"].minimum < found["copy"].minimum
    assert "gpu" in timing.environment("cuda")
