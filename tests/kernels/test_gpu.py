"""Tests on a GPU that compare it with a CPU: the layer, the models, generation, the benchmarks."""

from pathlib import Path

import bench_layer
import bench_pooling
import pytest
import results
import torch

from hf_qrnn import QRNN, QRNNConfig, QRNNForConditionalGeneration, use_backend
from hf_qrnn.model.backends_qrnn import unavailable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
CONFIG = {
    "vocab_size": 13, "embedding_size": 6, "hidden_size": 8, "encoder_layers": 2,
    "decoder_layers": 2,
}  # fmt: skip


@pytest.fixture(params=["native", "triton", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = unavailable(request.param, torch.device("cuda"))
    if reason is not None:
        pytest.skip(reason)
    return request.param


def test_layer_and_its_gradients_match_the_cpu(backend: str) -> None:
    layer = QRNN(5, 6, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(70, 3, 5, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        layer.to(device).zero_grad()
        with use_backend(backend if device == "cuda" else "torch"):
            output, state = layer(x.to(device))
            (output.square().sum() + state.c_n.sum()).backward()
        grads = [p.grad.cpu().clone() for p in layer.parameters()]
        found.append([output.detach().cpu(), *grads])
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


def test_generated_tokens_match_the_cpu(backend: str) -> None:
    model = QRNNForConditionalGeneration(QRNNConfig(**CONFIG)).double().eval()
    ids = torch.randint(4, 13, (3, 9))
    found = []
    for device in ("cpu", "cuda"):
        model.to(device)
        with use_backend(backend if device == "cuda" else "torch"):
            found.append(model.generate(ids.to(device), num_beams=3, max_length=20).cpu())
    assert torch.equal(*found)


def test_benchmarks_run(tmp_path: Path) -> None:
    layers, poolings = tmp_path / "layer.jsonl", tmp_path / "pooling.jsonl"
    brief = ["--device", "cuda", "--seconds", "0"]
    assert bench_layer.main([*brief, "--grid", "smoke", "--output", str(layers)]) == 0
    found = {(x["peer"], x["timing"]) for x in results.read(layers) if x["bench"] == "layer"}
    assert found >= {("nn.LSTM A", "eager"), ("nn.LSTM A", "graph")}
    arguments = [*brief, "--shapes", "8x65x64", "--megabytes", "1", "--output", str(poolings)]
    assert bench_pooling.main(arguments) == 0
    assert any("of_floor" in x for x in results.read(poolings))
