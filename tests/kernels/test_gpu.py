"""Tests on a GPU: contracts of `pool`, layer, connection, models and generation, benchmarks."""

from pathlib import Path
from typing import Any

import bench_layer
import bench_pooling
import pytest
import results
import stepping
import torch
from generating import seq2seq, source
from pooling_loop import inputs

from hf_qrnn import QRNN, QRNNConfig, QRNNForConditionalGeneration, pool, use_backend
from hf_qrnn.model.backends_qrnn import connection_kernels, unavailable
from hf_qrnn.model.connect_qrnn import connect, dropout_keep
from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
DEVICE = "cuda"
CONFIG = {
    "vocab_size": 13, "embedding_size": 6, "hidden_size": 8, "encoder_layers": 2,
    "decoder_layers": 2,
}  # fmt: skip


@pytest.fixture(params=["native", "triton", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = unavailable(request.param, torch.device(DEVICE))
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("pooling", POOL_KINDS)
def test_gradients_are_right_with_every_option(pooling: str, backend: str) -> None:
    batch, length, hidden = 2, 35, 2
    mask = torch.rand(batch, length, device=DEVICE) < 0.8
    seed = torch.tensor(7, device=DEVICE)

    def call(*leaves: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        gates, bias, state = leaves
        assert gates is not None
        options = {"mask": mask, "zoneout": 0.3, "seed": seed, "return_c": True}
        output = pool(gates, pooling=pooling, bias=bias, initial_state=state, **options)  # type: ignore[arg-type]
        return tuple(x for x in output if x is not None)

    given = inputs(pooling, shape=(batch, length, hidden)).values()
    leaves = [x.detach().to(DEVICE).requires_grad_() for x in given if x is not None]
    with use_backend(backend):
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


def test_operation_passes_opcheck(backend: str) -> None:
    gates = torch.randn(2, 35, 12, device=DEVICE, requires_grad=True)
    arguments = (gates, None, None, None, None, "fo", 0.0, False, True, True, "auto")
    with use_backend(backend):
        torch.library.opcheck(torch.ops.hf_qrnn.pool_v2.default, arguments)


# What Inductor warns of differs between GPUs and releases.
@pytest.mark.filterwarnings("ignore")
def test_training_step_of_a_layer_compiles_to_one_graph(backend: str) -> None:
    layer = QRNN(16, 16, batch_first=True).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(3, 40, 16, device=DEVICE)
    found = []
    for module in (layer, compiled):
        layer.zero_grad()
        with use_backend(backend):
            h = module(x)[0]
            h.square().sum().backward()
        found.append([h.detach(), *(p.grad.clone() for p in layer.parameters())])
    # Matrix products of a GPU may round to ten bits.
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


def test_layer_and_its_gradients_match_the_cpu(backend: str) -> None:
    layer = QRNN(5, 6, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(70, 3, 5, dtype=torch.float64)
    found = []
    for device in ("cpu", DEVICE):
        layer.to(device).zero_grad()
        with use_backend(backend if device == DEVICE else "torch"):
            output, state = layer(x.to(device))
            (output.square().sum() + state.c_n.sum()).backward()
        grads = [p.grad.cpu().clone() for p in layer.parameters()]
        found.append([output.detach().cpu(), *grads])
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


def test_connection_and_its_gradients_match_the_cpu(backend: str) -> None:
    leaves = [
        torch.randn(shape, dtype=torch.float64) for shape in ((3, 70, 37), (3, 70, 37), (37,))
    ]
    found = []
    for device in ("cpu", "cuda"):
        given = [x.to(device).requires_grad_() for x in leaves]
        with use_backend(backend if device == "cuda" else "torch"):
            out, normed = connect(*given, dropout=0.3, seed=torch.tensor(7, device=device))
            (out.square().sum() + normed.sin().sum()).backward()
        found.append([x.detach().cpu() for x in (out, normed, *(x.grad for x in given))])
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


def test_connection_in_a_graph_reads_its_seed_at_every_replay(backend: str) -> None:
    h, seed = torch.ones(2, 5, 64, device="cuda"), torch.tensor(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with use_backend(backend):
        connect(h, dropout=0.5, seed=seed)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            out = connect(h, dropout=0.5, seed=seed).out
    for number in (1, 2):
        seed.fill_(number)
        graph.replay()
        assert torch.equal(out != 0, dropout_keep(seed, 2, 5, 64, 0.5))


def test_connection_of_more_than_2_to_the_31_numbers(backend: str) -> None:
    with use_backend(backend):
        kernels = connection_kernels(torch.device("cuda"))
    if kernels is None:
        pytest.skip("the definition needs many times the memory")
    batch, length, hidden = 33_000, 64, 1024
    if torch.cuda.mem_get_info()[0] < 10 * batch * length * hidden:
        pytest.skip("not enough GPU memory is free")
    h = torch.empty(batch, length, hidden, device="cuda", dtype=torch.bfloat16).normal_()
    weight = torch.ones(hidden, device="cuda")
    _, normed, inverse = kernels.forward(h, None, weight, None, 0.0, 1e-6, "bfloat16")
    of_h, *_ = kernels.backward(None, h, h, weight, inverse, None, 0.0, "bfloat16", "")
    last = h[-1:].clone()
    _, near, r = kernels.forward(last, None, weight, None, 0.0, 1e-6, "bfloat16")
    of_last, *_ = kernels.backward(None, last, last, weight, r, None, 0.0, "bfloat16", "")
    torch.testing.assert_close((normed[-1:], of_h[-1:]), (near, of_last))


def test_generated_tokens_match_the_cpu(backend: str) -> None:
    model = QRNNForConditionalGeneration(QRNNConfig(**CONFIG)).double().eval()
    ids = torch.randint(4, 13, (3, 9))
    found = []
    for device in ("cpu", DEVICE):
        model.to(device)
        with use_backend(backend if device == DEVICE else "torch"):
            found.append(model.generate(ids.to(device), num_beams=3, max_length=20).cpu())
    assert torch.equal(*found)


NATIVE = pytest.mark.skipif(
    torch.cuda.is_available() and unavailable("native", torch.device(DEVICE)) is not None,
    reason="the native library has no code for this GPU",
)


@NATIVE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_step_of_a_decoder_matches_the_cpu(dtype: torch.dtype) -> None:
    operation = torch.ops.hf_qrnn_kernels.decoder_step
    for changes in stepping.VARIANTS.values():
        for case in (stepping.Case(changes, dtype, each=3), stepping.Case(changes, dtype, mask="")):
            stepping.check(case, operation, device=DEVICE)
    stepping.check_no_source(
        lambda *given: stepping.on_device(operation(*stepping.on_device([*given], DEVICE)), "cpu")
    )


@NATIVE
@torch.no_grad()
def test_step_of_a_decoder_is_captured_in_a_graph() -> None:
    drawn = stepping.draw(stepping.Case(stepping.MODERN, torch.float32))
    given = stepping.on_device(stepping.arguments(drawn), DEVICE)
    operation, graph = torch.ops.hf_qrnn_kernels.decoder_step, torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        operation(*given)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        captured = operation(*given)
    given[0].mul_(2)
    graph.replay()
    torch.testing.assert_close(captured, operation(*given))


@NATIVE
@pytest.mark.parametrize("changes", [{}, stepping.MODERN], ids=["paper", "modern"])
def test_generate_takes_the_native_step(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = stepping.count_native_steps(monkeypatch)
    model, inputs = seq2seq(**changes).to(DEVICE), {k: v.to(DEVICE) for k, v in source().items()}
    found = model.generate(**inputs, max_new_tokens=9, num_beams=2)
    assert set(taken) == {6}
    taken.clear()
    with use_backend("torch"):
        assert torch.equal(model.generate(**inputs, max_new_tokens=9, num_beams=2), found)
    assert not taken


def test_benchmarks_run(tmp_path: Path) -> None:
    layers, poolings = tmp_path / "layer.jsonl", tmp_path / "pooling.jsonl"
    brief = ["--device", "cuda", "--seconds", "0"]
    assert bench_layer.main([*brief, "--grid", "smoke", "--output", str(layers)]) == 0
    found = {(x["peer"], x["timing"]) for x in results.read(layers) if x["bench"] == "layer"}
    assert found >= {("nn.LSTM A", "eager"), ("nn.LSTM A", "graph")}
    arguments = [*brief, "--shapes", "8x65x64", "--megabytes", "1", "--output", str(poolings)]
    assert bench_pooling.main(arguments) == 0
    assert any("of_floor" in x for x in results.read(poolings))
