"""Quantisers take every layer of a model: by look-alikes, and by the tools that are installed."""

import copy
import functools
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_models
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    QuantoConfig,
    TorchAoConfig,
)

from hf_qrnn import (
    QRNN,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
)
from hf_qrnn.model.quantization_qrnn import check_quantized, leave_unpacked

MODERN = {
    "encoder_bidirectional": True,
    "reverse_source": False,
    "residual": True,
    "rms_norm": True,
    "attention_layers": "all",
    "feed_forward_size": 48,
}
STACKS = {"paper": {}, "modern": MODERN}


small = functools.partial(small_models.small, embedding_size=64, hidden_size=64)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 20, (3, 5))
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [0, 1, 1, 1, 1]])
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}


class LookAlike(nn.Module):
    """A layer of int8 rows in buffers, with none of `nn.Linear`'s attributes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("rows", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.rows.to(x.dtype) * self.scale, self.shift)


def quantized_as(model: nn.Module) -> tuple[Any, float]:
    """A copy of `model` with a LookAlike for every plain linear layer; the share of weights taken.

    `model` gets the weights that the LookAlikes stand for.
    """
    quantized = copy.deepcopy(model)
    total, taken = sum(p.numel() for p in model.parameters()), 0
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            layer = LookAlike(module)
            quantized.set_submodule(name, layer)
            module.weight.data = layer.rows * layer.scale
            taken += module.weight.numel()
    return quantized, taken / total


@pytest.mark.parametrize("changes", STACKS.values(), ids=STACKS)
def test_look_alikes_take_all_products(changes: dict[str, Any]) -> None:
    model = QRNNForConditionalGeneration(small(**changes)).eval()
    quantized, share = quantized_as(model)
    assert share > 0.97
    left = {type(m).__name__ for m in quantized.modules() if list(m.parameters(recurse=False))}
    assert left <= {"Embedding", "RMSNorm"}
    batch = inputs()
    torch.testing.assert_close(quantized(**batch).logits, model(**batch).logits)
    ids = batch["input_ids"]
    wanted, got = (each.generate(ids, max_new_tokens=3) for each in (model, quantized))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("kind", [QRNNForCausalLM, QRNNForSequenceClassification])
def test_look_alikes_take_all_products_of_the_other_heads(kind: Any) -> None:
    model = kind(small()).eval()
    quantized, share = quantized_as(model)
    assert share > 0.96
    ids = inputs()["input_ids"]
    torch.testing.assert_close(quantized(ids).logits, model(ids).logits)


def test_look_alikes_run_by_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = QRNNForConditionalGeneration(small()).eval()
    quantized, _ = quantized_as(model)
    batch = inputs()
    wanted = model(**batch).logits
    monkeypatch.setattr("hf_qrnn.model.layers_qrnn.BLOCK_BYTES", 1)
    with torch.no_grad():
        torch.testing.assert_close(quantized(**batch).logits, wanted)


def test_look_alikes_take_all_products_of_the_layer() -> None:
    model = QRNN(32, 64, num_layers=2, bidirectional=True)
    quantized, share = quantized_as(model)
    assert share > 0.98
    x = torch.randn(7, 2, 32)
    torch.testing.assert_close(quantized(x)[0], model(x)[0])


# ------------------------------------------------------------------ what bitsandbytes' layers need


class Linear4bit(nn.Linear):
    """Named as bitsandbytes' class, with what is asked of it."""

    def __init__(self, num_inputs: int, num_rows: int, blocksize: int = 64) -> None:
        super().__init__(num_inputs, num_rows)
        self.weight = Params4bit(self.weight)
        self.weight.quant_state = SimpleNamespace(shape=(num_rows, num_inputs), blocksize=blocksize)
        self.support_avx512bf16_for_cpu = True


class Params4bit(nn.Parameter):
    """The class of quantised weights."""


@pytest.mark.parametrize(
    ("num_inputs", "num_rows", "packed"), [(64, 32, True), (96, 32, False), (128, 300, False)]
)
def test_layers_that_cannot_be_packed_are_left_as_they_are(
    num_inputs: int, num_rows: int, packed: bool
) -> None:
    model = nn.Sequential(Linear4bit(num_inputs, num_rows), nn.Linear(num_rows, 2))
    leave_unpacked(model)
    assert model[0].support_avx512bf16_for_cpu is packed


def test_layers_whose_weights_were_not_loaded_are_named() -> None:
    model = nn.ModuleDict({"loaded": Linear4bit(64, 32), "classifier": Linear4bit(64, 32)})
    check_quantized(model)
    model["classifier"].weight = nn.Parameter(torch.zeros(32, 64))
    with pytest.raises(ValueError, match=r"`llm_int8_skip_modules` must name .* add 'classifier'"):
        check_quantized(model)


# ------------------------------------------------------------------ the tools, where installed


@pytest.fixture
def installed() -> None:
    """The tools warn of each other, of libraries without a GPU and of what they still use."""
    warnings.simplefilter("ignore")


def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is no dependency")


def saved(folder: Path, kind: Any = QRNNForConditionalGeneration, **fields: Any) -> Any:
    model = kind(small(**fields)).eval()
    model.save_pretrained(folder)
    return model


def dequantized(model: nn.Module, quantized: nn.Module) -> nn.Module:
    """`model` with the weights that `quantized` stands for."""
    functional = bitsandbytes().functional
    for name, module in quantized.named_modules():
        plain = model.get_submodule(name)
        if type(module).__name__ == "Linear4bit":
            weight = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.weight.data.copy_(weight)
        elif type(module).__name__ == "Linear8bitLt":
            plain.weight.data.copy_(module.weight.CB * module.weight.SCB[:, None] / 127)
    return model


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("hidden", [64, 96, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ],
    ids=["8bit", "fp4", "nf4"],
)
def test_bitsandbytes(hidden: int, options: dict[str, Any], tmp_path: Path) -> None:
    bitsandbytes()
    model = saved(tmp_path, hidden=hidden)
    config = BitsAndBytesConfig(**options)
    quantized = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, quantization_config=config)
    left = [name for name, module in quantized.named_modules() if type(module) is nn.Linear]
    assert left == ["lm_head"]  # as with any model
    taken = sum(
        model.get_parameter(name).numel()
        for name, parameter in quantized.named_parameters()
        if parameter.dtype in (torch.int8, torch.uint8)
    )
    assert taken > 0.95 * sum(p.numel() for p in model.parameters())
    quantized.save_pretrained(tmp_path / "again")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
    batch = inputs()
    with torch.no_grad():
        wanted = dequantized(model, quantized)(**batch).logits
        got = quantized(**batch).logits
        assert torch.equal(again(**batch).logits, got)
    # 8 bits are multiplied in float16, and 4 bits in bfloat16 where they are packed.
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert quantized.generate(batch["input_ids"], max_new_tokens=3).shape == (3, 4)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_bitsandbytes_on_a_head_the_checkpoint_lacks(bits: str, tmp_path: Path) -> None:
    bitsandbytes()
    saved(tmp_path)
    auto = AutoModelForSequenceClassification
    with pytest.raises(ValueError, match=r"`llm_int8_skip_modules` must .* add 'classifier'"):
        auto.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**{bits: True}))
    config = BitsAndBytesConfig(**{bits: True}, llm_int8_skip_modules=["classifier"])
    model = auto.from_pretrained(tmp_path, quantization_config=config)
    with torch.no_grad():
        assert model(inputs()["input_ids"]).logits.isfinite().all()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quanto(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is no dependency")
    model = saved(tmp_path, QRNNForCausalLM)
    config = QuantoConfig(weights=weights)
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    kinds = {n: type(m).__name__ for n, m in quantized.named_modules() if isinstance(m, nn.Linear)}
    assert kinds.pop("lm_head") == "Linear"
    assert set(kinds.values()) == {"QLinear"}
    assert len(kinds) == 2
    ids = inputs()["input_ids"]
    with torch.no_grad():
        wanted, got = model(ids).logits, quantized(ids).logits
    assert (got - wanted).abs().max() < {"int8": 0.05, "int4": 0.5}[weights] * wanted.abs().max()


@pytest.mark.usefixtures("installed")
def test_torchao(tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is no dependency")
    model = saved(tmp_path)
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    quantized = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, quantization_config=config)
    linear = {n: m.weight for n, m in quantized.named_modules() if isinstance(m, nn.Linear)}
    left = [name for name, weight in linear.items() if type(weight) is nn.Parameter]
    assert left == ["lm_head"]
    batch = inputs()
    with torch.no_grad():
        wanted, got = model(**batch).logits, quantized(**batch).logits
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.usefixtures("installed")
def test_dynamic_quantization_of_torch() -> None:
    model = QRNNForConditionalGeneration(small()).eval()
    quantize = torch.ao.quantization.quantize_dynamic
    quantized = quantize(model, {nn.Linear})
    left = [name for name, module in quantized.named_modules() if isinstance(module, nn.Linear)]
    assert left == []
    batch = inputs()
    wanted, got = model(**batch).logits, quantized(**batch).logits
    assert (got - wanted).abs().max() < 0.1 * wanted.abs().max()
