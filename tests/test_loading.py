"""Saved folders: exact reload, every Auto class, with and without the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
    use_backend,
)
from hf_qrnn.tokenization import train_character_tokenizer

HEADS = {
    AutoModel: QRNNModel,
    AutoModelForSeq2SeqLM: QRNNForConditionalGeneration,
    AutoModelForCausalLM: QRNNForCausalLM,
    AutoModelForSequenceClassification: QRNNForSequenceClassification,
}


def config() -> QRNNConfig:
    return QRNNConfig(
        vocab_size=16, embedding_size=6, hidden_size=8, encoder_layers=2, decoder_layers=2
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved translation model with its tokenizer."""
    QRNNForConditionalGeneration(config()).eval().save_pretrained(tmp_path)
    train_character_tokenizer(["abcdefgh ijk"]).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("auto", "kind"), HEADS.items(), ids=lambda x: x.__name__)
def test_reload_is_exact(auto: type, kind: type, tmp_path: Path) -> None:
    model = kind(config())
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is kind
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {
        "_name_or_path": "",
        "dtype": again.config.to_dict()["dtype"],
        "architectures": [kind.__name__],
    }


def test_folder_holds_safetensors_json_and_code_only(folder: Path) -> None:
    endings = {path.suffix for path in folder.iterdir()}
    assert endings == {".safetensors", ".json", ".py"}
    names = {path.name for path in folder.glob("*.py")}
    parts = "backends cache configuration generation layers modeling pooling stacks"
    assert names == {f"{part}_qrnn.py" for part in parts.split()}


def test_auto_map_is_full_whatever_head_was_saved(tmp_path: Path) -> None:
    for kind in HEADS.values():
        kind(config()).save_pretrained(tmp_path / kind.__name__)
        saved = json.loads((tmp_path / kind.__name__ / "config.json").read_text())
        assert saved["auto_map"] == {
            "AutoConfig": "configuration_qrnn.QRNNConfig",
            **{auto.__name__: f"modeling_qrnn.{head.__name__}" for auto, head in HEADS.items()},
        }


@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
def test_every_head_takes_the_common_weights(auto: type, folder: Path) -> None:
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    saved = load_file(folder / "model.safetensors")
    loaded = model.state_dict()
    prefix = "model." if auto is AutoModel else ""
    common = [name for name in saved if name.removeprefix(prefix) in loaded]
    assert "model.shared.weight" in common
    for name in common:
        assert torch.equal(saved[name], loaded[name.removeprefix(prefix)]), name
    missing = {AutoModelForSequenceClassification: {"classifier.weight", "classifier.bias"}}
    assert set(info["missing_keys"]) == missing.get(auto, set())


def test_tied_embedding_is_saved_once(tmp_path: Path) -> None:
    tied = config()
    tied.tie_word_embeddings = True
    QRNNForConditionalGeneration(tied).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.shared.weight


def test_dtype_and_generation_config_survive(folder: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.generation_config.max_length == 512
    assert AutoConfig.from_pretrained(folder).hidden_size == 8


REMOTE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_qrnn":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch, transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
folder, again = sys.argv[1:]
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert model.is_remote_code()
inputs = tokenizer(["abc def", "k"], return_tensors="pt", padding=True)
with torch.no_grad():
    logits = model(**inputs, decoder_input_ids=torch.tensor([[3, 5, 6], [3, 7, 8]])).logits
tokens = model.generate(**inputs, num_beams=2, max_new_tokens=7)
for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
    getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
AutoModelForSeq2SeqLM.from_pretrained(again, trust_remote_code=True)
print(json.dumps([logits.tolist(), tokens.tolist()]))
"""


def test_folder_loads_where_the_package_is_not_installed(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", REMOTE, str(folder), str(again)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    logits, tokens = json.loads(result.stdout.splitlines()[-1])

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 4, 8, 9, 10, 1], [15, 1, 0, 0, 0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 8, [1] * 2 + [0] * 6]),
    }
    # Without the package there is no compiled library.
    with torch.no_grad(), use_backend("torch"):
        local = model(**inputs, decoder_input_ids=torch.tensor([[3, 5, 6], [3, 7, 8]])).logits
        assert local.tolist() == logits
        assert model.generate(**inputs, num_beams=2, max_new_tokens=7).tolist() == tokens
    assert (again / "modeling_qrnn.py").is_file()


def test_loading_without_trust_is_refused_without_the_package(folder: Path) -> None:
    code = (
        "import sys; from transformers import AutoModelForSeq2SeqLM as A;"
        "A.from_pretrained(sys.argv[1], trust_remote_code=False)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "trust_remote_code=True" in result.stderr
