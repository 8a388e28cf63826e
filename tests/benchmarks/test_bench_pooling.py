"""benchmarks/bench_pooling.py and peers.py: end to end on tiny sizes, other packages as stubs."""

import itertools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_pooling
import peers
import pytest
import results
import torch
from benching import make_brief

from hf_qrnn import kernels
from hf_qrnn.speed.timing import Timing

CPU = torch.device("cpu")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    make_brief(bench_pooling, monkeypatch)


SHAPE = (2, 35, 3)


def test_poolings_end_to_end(
    brief: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.jsonl"
    arguments = ["--shapes", "8x65x16", "--megabytes", "1", "--dtypes", "float32", "bfloat16"]
    assert bench_pooling.main([*arguments, "--output", str(path)]) == 0
    records = results.read(path)
    has_library = kernels.unavailable(CPU) is None
    backends = ["compiled", "torch"] if has_library else ["torch"]
    measured = [x for x in records if x["bench"] == "pooling" and "skipped" not in x]
    assert [(x["dtype"], x["backend"], x["mode"]) for x in measured] == list(
        itertools.product(["float32", "bfloat16"], backends, ["forward", "backward"])
    )
    for record in measured:
        size = {"float32": 4, "bfloat16": 2}[record["dtype"]]
        wanted = {"forward": 4 * size, "backward": 7 * size + 4 / 32}[record["mode"]]
        assert record["bytes_per_element"] == wanted
        assert record["of_copy"] > 0
        assert record["max_error"] < 0.05
    skipped = [x["backend"] for x in records if "skipped" in x]
    assert skipped == (["triton"] if has_library else ["compiled", "triton"]) * 2
    # Data of a cache's size says nothing about memory.
    assert bench_pooling.main(["--table", str(path), "--check"]) == 1
    output = capsys.readouterr().out
    assert "| torch | backward | bfloat16 | 1 | 8 x 65 x 16 |" in output
    assert "no goal was measured" in output


def test_instructions_can_be_chosen(
    brief: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--shapes", "2x5x3", "--megabytes", "1", "--output", str(tmp_path / "out.jsonl")]
    if kernels.unavailable(CPU) is None:
        try:
            assert bench_pooling.main([*arguments, "--simd", "baseline"]) == 0
            assert torch.ops.hf_qrnn_kernels.simd("") == "baseline"
        finally:
            torch.ops.hf_qrnn_kernels.simd("best")
    monkeypatch.setattr(kernels, "unavailable", lambda device: "no compiler")
    with pytest.raises(SystemExit) as stopped:
        bench_pooling.main([*arguments, "--simd", "avx2"])
    assert stopped.value.code == 2
    assert "there are none: no compiler" in capsys.readouterr().err


def test_bytes_are_those_of_the_issue() -> None:
    assert bench_pooling.bytes_per_element("forward", 2) == 8
    assert round(bench_pooling.bytes_per_element("backward", 2), 1) == 14.1
    assert bench_pooling.bytes_per_element("forward+backward", 2) == 22.25


def test_buffers_do_not_fit_a_cache_and_outputs_take_turns() -> None:
    buffers = bench_pooling.make_buffers(SHAPE, torch.float32, "cpu", 10_000)
    sizes = [x.numel() * 4 for x in buffers.gates]
    assert sum(sizes) >= 10_000 > sum(sizes[1:])
    outputs: list[object] = []

    def call(index: int) -> object:
        outputs.append(torch.zeros(1))
        return outputs[-1]

    run = bench_pooling.rounds(call, 3)
    run()
    run()
    assert len({id(x) for x in outputs}) == 6


def test_wrong_values_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = bench_pooling.make_buffers(SHAPE, torch.float32, "cpu", 1)
    assert bench_pooling.check_values("torch", buffers) < 1e-6
    right = bench_pooling.forward

    def wrong(backend: str, gates: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
        h, *others = right("torch", gates, **options)
        return (h + 1e-3 if backend == "broken" else h, *others)

    monkeypatch.setattr(bench_pooling, "forward", wrong)
    monkeypatch.setattr(bench_pooling, "backward", lambda *_: (torch.zeros(()),))
    with pytest.raises(RuntimeError, match=r"broken is off by 0\.001"):
        bench_pooling.check_values("broken", buffers)


# ------------------------------------------------------------------ peers of a GPU


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Callable[..., Any]) -> None:
    parent = name.split(".")[0]
    monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def scan(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """c_t = exp(g_t) c_{t-1} + x_t over dimension 1."""
    c, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        c = g[:, t].exp() * c + x[:, t]
        states.append(c)
    return torch.stack(states, 1)


def test_peers_that_are_installed_are_called_as_they_want_it(
    brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hgrn(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, None]:
        assert x.shape == g.shape == SHAPE
        assert g.max() <= 0  # the logarithm of a gate
        return scan(x, g), None

    def accelerated(gates: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        assert gates.shape == tokens.shape == (2, 3, 35)
        assert gates.min() >= 0
        return scan(tokens.transpose(1, 2), gates.transpose(1, 2).log()).transpose(1, 2)

    stub(monkeypatch, "fla.ops.hgrn", chunk_hgrn=hgrn, fused_recurrent_hgrn=hgrn)
    stub(monkeypatch, "accelerated_scan.warp", scan=accelerated)
    monkeypatch.setattr(bench_pooling, "forward", lambda backend, x, **_: (x.sum(), 0, 0, x))
    monkeypatch.setattr(bench_pooling, "backward", lambda backend, *x: (x[0].sum(),))
    monkeypatch.setattr(bench_pooling, "unavailable", lambda *_: None)
    records = list(bench_pooling.bench_peers(SHAPE, 0.0, "cpu"))
    measured = [(x["peer"], x["mode"]) for x in records if "skipped" not in x]
    names = ["fla chunk_hgrn", "fla fused_recurrent_hgrn", "accelerated-scan"]
    assert measured == list(itertools.product(names, ["forward", "forward+backward"]))
    reasons = {x["peer"]: x["skipped"] for x in records if "skipped" in x}
    assert reasons.keys() == {"SRU", "rg_lru"}
    assert reasons["SRU"].startswith("ModuleNotFoundError: No module named 'sru")


def test_ratio_of_peers_is_per_byte(brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = peers.Peer(lambda: None, lambda: None, 16, 44)
    monkeypatch.setattr(bench_pooling, "PEERS", {"stand-in": None})
    monkeypatch.setattr(bench_pooling, "load", lambda *_: peer)
    equal = {"ours": Timing((1.0,)), "theirs": Timing((1.0,))}
    monkeypatch.setattr(bench_pooling, "interleave", lambda calls, **_: equal)
    monkeypatch.setattr(bench_pooling, "forward", lambda backend, x, **_: (x, 0, 0, x))
    monkeypatch.setattr(bench_pooling, "unavailable", lambda *_: None)
    records = bench_pooling.bench_peers(SHAPE, 0.0, "cpu")
    # As long for 8 bytes as the other for 16: half as fast.
    assert [x["ratio"] for x in records] == [0.5, pytest.approx(22.25 / 44, abs=1e-4)]


def test_sru_is_given_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def recurrence(*arguments: Any) -> list[torch.Tensor]:
        u, x, weight, bias, c0, activation, hidden, bidirectional, skips = arguments
        assert u.shape == (35, 2, 9)
        assert x.shape == (35, 2, 3)
        assert weight.shape == bias.shape == (6,)
        assert c0.shape == (2, 3)
        assert (activation, hidden, bidirectional, skips) == (0, 3, False, True)
        return [u[..., :3] * x, c0]

    stub(monkeypatch, "sru.ops", elementwise_recurrence_gpu=recurrence)
    peer = peers.load("SRU", SHAPE, "cpu")
    assert isinstance(peer, peers.Peer)
    grads = peer.both()
    assert [x.shape for x in grads] == [(35, 2, 9), (35, 2, 3)]  # type: ignore[attr-defined]


def test_an_api_that_changed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "accelerated_scan.warp")
    assert "AttributeError" in str(peers.load("accelerated-scan", SHAPE, "cpu"))


def test_no_peer_without_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_pooling, "unavailable", lambda *_: "the library is not built")
    records = list(bench_pooling.bench_peers(SHAPE, 0.0, "cpu"))
    assert [x["skipped"] for x in records] == ["compiled: the library is not built"]
