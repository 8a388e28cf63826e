"""Adapters of PEFT, which is no dependency: they train, save, merge and generate on every head."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
)

HEADS = {
    "SEQ_2_SEQ_LM": QRNNForConditionalGeneration,
    "CAUSAL_LM": QRNNForCausalLM,
    "SEQ_CLS": QRNNForSequenceClassification,
}
SIZES = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 8}


def rows(task: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 20, (4, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 6])
    labels = torch.tensor([0, 1, 1, 0]) if task == "SEQ_CLS" else ids.flip(1)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def adapters(peft: Any) -> dict[str, Any]:
    gates = ["convolution", "encoding"]
    few = {"num_virtual_tokens": 3, "token_dim": 6}
    return {
        "lora": lambda task: peft.LoraConfig(task_type=task, target_modules="all-linear"),
        "saved": lambda task: peft.LoraConfig(
            task_type=task, target_modules=gates, modules_to_save=["shared", "attention"]
        ),
        "tokens": lambda task: peft.TrainableTokensConfig(task_type=task, token_indices=[4, 5]),
        "ia3": lambda task: peft.IA3Config(
            task_type=task, target_modules=gates, feedforward_modules=[]
        ),
        "prompt": lambda task: peft.PromptTuningConfig(task_type=task, **few),
        "encoded prompt": lambda task: peft.PromptEncoderConfig(task_type=task, **few),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["lora", "saved", "tokens", "ia3", "prompt", "encoded prompt"])
@pytest.mark.parametrize("task", HEADS)
def test_adapters_train_save_and_merge(name: str, task: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is no dependency")
    base: Any = HEADS[task](QRNNConfig(**SIZES, encoder_layers=2, decoder_layers=2))
    model = peft.get_peft_model(copy.deepcopy(base), adapters(peft)[name](task)).train()
    if name == "lora":
        linear = {n for n, m in base.named_modules() if isinstance(m, nn.Linear)}
        taken = {n for n in linear if hasattr(model.base_model.model.get_submodule(n), "lora_A")}
        assert linear - taken <= {"lm_head", "classifier"}
    batch = rows(task)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    first = model(**batch).loss
    first.backward()
    optimizer.step()
    assert model(**batch).loss < first
    model.eval().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    wanted = model(**batch).logits
    assert torch.equal(again(**batch).logits, wanted)
    if task != "SEQ_CLS":
        again.generate(input_ids=batch["input_ids"], max_new_tokens=2)
    if "prompt" not in name:
        torch.testing.assert_close(again.merge_and_unload()(**batch).logits, wanted)
