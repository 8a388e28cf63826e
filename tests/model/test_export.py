"""`torch.export` and ONNX, with dynamic batch and lengths: right at sizes they have not seen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small
from torch.export import Dim, ExportedProgram

from hf_qrnn import (
    QRNN,
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
    pool,
)

VARIANTS = {
    "paper": {},
    "modern": {
        "encoder_bidirectional": True, "residual": True, "rms_norm": True, "pooling": "ifo",
        "attention_layers": "all", "num_attention_heads": 2, "feed_forward_size": 12,
    },
}  # fmt: skip
# Also sizes of one, which compilers like to take for constants.
NEW_SIZES = [(5, 11, 4), (2, 3, 9), (1, 6, 4), (3, 6, 1), (3, 1, 4)]


def config(**changes: object) -> QRNNConfig:
    # A cache is no result of an exported forward.
    return small(vocab_size=13, use_cache=False, **changes)


def rows(batch: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask of rows of different lengths, the first one whole."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 13, (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = length
    return ids, (torch.arange(length) < lengths[:, None]).long()


def seq2seq_inputs(batch: int, source: int, target: int) -> dict[str, torch.Tensor]:
    ids, mask = rows(batch, source, 0)
    decoder_ids, decoder_mask = rows(batch, target, 1)
    return {
        "input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids,
        "decoder_attention_mask": decoder_mask,
    }  # fmt: skip


def text_inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids, mask = rows(batch, length, 0)
    return {"input_ids": ids, "attention_mask": mask}


def dynamic_shapes(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    lengths = {"decoder": Dim("target"), "": Dim("source")}
    return {
        name: {0: Dim("batch"), 1: lengths["decoder" if name.startswith("decoder") else ""]}
        for name in inputs
    }


def exported(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> ExportedProgram:
    program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic_shapes(inputs))
    operations = {str(node.target) for node in program.graph.nodes}
    # The recurrence is one node, not a loop unrolled to the length of the example.
    assert "hf_qrnn.pool_v2.default" in operations
    return program


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_translation_model_exports_with_dynamic_sizes(changes: dict[str, object]) -> None:
    model = QRNNForConditionalGeneration(config(**changes)).eval()
    run = exported(model, seq2seq_inputs(4, 7, 5)).module()
    for sizes in NEW_SIZES:
        inputs = seq2seq_inputs(*sizes)
        got = run(**inputs)
        expected = model(**inputs)
        assert got.logits.shape == (sizes[0], sizes[2], 13)
        torch.testing.assert_close(got.logits, expected.logits)
        torch.testing.assert_close(
            got.encoder_last_hidden_state, expected.encoder_last_hidden_state
        )


@pytest.mark.parametrize(
    ("kind", "variant"),
    [(QRNNForCausalLM, "paper"), (QRNNForSequenceClassification, "modern")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_text_model_exports_with_dynamic_sizes(kind: type, variant: str) -> None:
    model = kind(config(**VARIANTS[variant])).eval()
    run = exported(model, text_inputs(4, 7)).module()
    for batch, length, _ in NEW_SIZES:
        inputs = text_inputs(batch, length)
        torch.testing.assert_close(run(**inputs).logits, model(**inputs).logits)


def test_layer_exports_with_dynamic_sizes() -> None:
    layer = QRNN(3, 4, 2, kernel_size=3, bidirectional=True).eval()
    shapes = ({0: Dim("time"), 1: Dim("batch")},)
    run = torch.export.export(layer, (torch.randn(7, 4, 3),), dynamic_shapes=shapes).module()
    for time, batch in [(5, 2), (12, 3)]:
        x = torch.randn(time, batch, 3)
        torch.testing.assert_close(run(x), layer(x))


def onnx_runtime() -> Any:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
@pytest.mark.filterwarnings("ignore")
def test_exported_program_becomes_onnx_later(pooling: str, tmp_path: Path) -> None:
    # As transformers' exporter does it, which knows no operation of ours. Zoneout and masks too.
    runtime = onnx_runtime()

    class Pool(torch.nn.Module):
        def forward(
            self, gates: torch.Tensor, mask: torch.Tensor, c0: torch.Tensor, seed: torch.Tensor
        ) -> tuple[torch.Tensor | None, ...]:
            options = {"zoneout": 0.4, "reverse": True, "return_c": True}
            return tuple(
                pool(gates, pooling=pooling, mask=mask, initial_state=c0, seed=seed, **options)
            )

    def given(batch: int, time: int) -> dict[str, torch.Tensor]:
        gates = torch.randn(batch, time, 3 * {"f": 2, "fo": 3, "ifo": 4}[pooling])
        mask, seed = rows(batch, time, 0)[1].bool(), torch.tensor(7)
        return {"gates": gates, "mask": mask, "c0": torch.randn(batch, 3), "seed": seed}

    batch, time = Dim("batch"), Dim("time")
    shapes = {"gates": {0: batch, 1: time}, "mask": {0: batch, 1: time}, "c0": {0: batch}}
    program = torch.export.export(Pool(), (), given(3, 5), dynamic_shapes={**shapes, "seed": None})
    assert "hf_qrnn.pool_v2.default" in {str(node.target) for node in program.graph.nodes}
    model = torch.onnx.export(program)
    assert model is not None
    assert [node.op_type for node in model.model.graph].count("Scan") == 1
    model.save(tmp_path / "pool.onnx")
    session = runtime.InferenceSession(tmp_path / "pool.onnx")
    for sizes in [(3, 5), (2, 9), (1, 4), (4, 1)]:
        inputs = given(*sizes)
        got = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        for a, b in zip(got, Pool()(**inputs), strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["paper", "modern"])
@pytest.mark.filterwarnings("ignore")
def test_translation_model_runs_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    runtime = onnx_runtime()
    model = QRNNForConditionalGeneration(config(**VARIANTS[name])).eval()
    inputs = seq2seq_inputs(4, 7, 5)
    program = torch.onnx.export(model, (), kwargs=inputs, dynamic_shapes=dynamic_shapes(inputs))
    assert program is not None
    # One loop for each direction of each layer: nothing is unrolled to the example's length.
    loops = [node for node in program.model.graph if node.op_type == "Scan"]
    assert len(loops) == (6 if name == "modern" else 4)
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for sizes in NEW_SIZES:
        inputs = seq2seq_inputs(*sizes)
        got = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        expected = model(**inputs).logits
        torch.testing.assert_close(torch.from_numpy(got[0]), expected, rtol=1e-3, atol=1e-4)


def test_models_have_no_encoder_of_images_or_sounds() -> None:
    # Else transformers' exporter takes a translation model for a multimodal one.
    for model in (QRNNModel(config()), QRNNForConditionalGeneration(config())):
        for modality in ("image", "video", "audio"):
            assert model.get_encoder(modality=modality) is model
        assert model.get_encoder() is not model
        with pytest.raises(ValueError, match="modality"):
            model.get_encoder(modality="smell")
