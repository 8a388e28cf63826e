"""Tests that folders of 0.1.0 load and compute the same, with the package and without."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import hf_qrnn

FOLDERS = Path(__file__).parents[1] / "saved_by_0_1_0"
AUTO = {"language_model": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
NAMES = ("paper", "modern", "ifo_dense", "f_tied", "language_model", "classifier")

# The inputs that the expected logits belong to.
INPUT_IDS = ((5, 6, 7, 8, 9, 1), (9, 4, 3, 1, 0, 0))
DECODER_INPUT_IDS = ((3, 5, 6), (3, 8, 2))


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    input_ids = torch.tensor(INPUT_IDS)
    inputs = {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}
    if name not in AUTO:
        inputs["decoder_input_ids"] = torch.tensor(DECODER_INPUT_IDS)
    return inputs


@pytest.mark.parametrize("name", NAMES)
def test_folder_gives_the_same_logits(name: str) -> None:
    auto = AUTO.get(name, AutoModelForSeq2SeqLM)
    model, info = auto.from_pretrained(FOLDERS / name, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        logits = model.double().eval()(**inputs_of(name)).logits
    expected = load_file(FOLDERS / name / "expected_logits.safetensors")["logits"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_folder_gives_the_same_logits_in_float32(name: str, backend: str) -> None:
    auto = AUTO.get(name, AutoModelForSeq2SeqLM)
    model = auto.from_pretrained(FOLDERS / name).eval()
    assert model.dtype == torch.float32
    with torch.no_grad(), hf_qrnn.use_backend(backend):
        logits = model(**inputs_of(name)).logits
    expected = load_file(FOLDERS / name / "expected_logits.safetensors")["logits"]
    # The error of 0.2.0's float32 before it had kernels for norms: 9e-6 of "modern", whose logits
    # go up to 3.1; of the others less.
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=2e-5)


# A process that cannot import the package runs the code of 0.1.0 itself.
WITHOUT_THE_PACKAGE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_qrnn":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM
folder, input_ids, decoder_input_ids = sys.argv[1], *map(eval, sys.argv[2:])
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).double().eval()
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
ids = torch.tensor(input_ids)
with torch.no_grad():
    logits = model(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        decoder_input_ids=torch.tensor(decoder_input_ids),
    ).logits
expected = load_file(folder + "/expected_logits.safetensors")["logits"]
torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
"""


def test_folder_runs_its_own_code_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(FOLDERS / "paper", folder)
    for path in (FOLDERS / "code").iterdir():
        shutil.copy(path, folder)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(folder)]
    done = subprocess.run(
        [*command, str(INPUT_IDS), str(DECODER_INPUT_IDS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
