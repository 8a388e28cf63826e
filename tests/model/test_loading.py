"""Saved folders: exact reload, every Auto class, with and without the package."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import small
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    dynamic_module_utils,
)

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNModel,
    use_backend,
)
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.model import base_qrnn, modeling_qrnn
from hf_qrnn.model.modeling_qrnn import AUTO_MAP

HEADS = {getattr(transformers, kind.registration.auto_class): kind for kind in modeling_qrnn.HEADS}


def config() -> QRNNConfig:
    return small(vocab_size=16)


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


def test_auto_map_is_the_one_of_every_saved_folder() -> None:
    # It is made from the heads: another one would be another folder on the Hub. Written by
    # hand, so that it can fail.
    assert AUTO_MAP == {
        "AutoConfig": "configuration_qrnn.QRNNConfig",
        "AutoModel": "modeling_qrnn.QRNNModel",
        "AutoModelForSeq2SeqLM": "modeling_qrnn.QRNNForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_qrnn.QRNNForCausalLM",
        "AutoModelForSequenceClassification": "modeling_qrnn.QRNNForSequenceClassification",
    }


def test_a_head_of_somebody_else_is_in_no_folder_of_ours(tmp_path: Path) -> None:
    # Its code would not be there.
    class Theirs(base_qrnn.QRNNPreTrainedModel):
        registration = base_qrnn.Registration("AutoModelForTokenClassification", "x")

    assert Theirs not in base_qrnn.heads()
    QRNNModel(config()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_folder_holds_safetensors_json_and_code_only(folder: Path) -> None:
    endings = {path.suffix for path in folder.iterdir()}
    assert endings == {".safetensors", ".json", ".py"}
    names = {path.name for path in folder.glob("*.py")}
    parts = "attention backends base blocks cache checks configuration connect convolution "
    parts += "decoder encoder generate_hooks internals keywords layers limits losses modeling "
    parts += "padding paired_convolution pool_equations pool_kinds pooling products quantization "
    parts += "step step_plan triton triton_connect"
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
    # A translation model has every weight of the base layout: only a head's own can be missing.
    own = {name for name in loaded if auto is not AutoModel and not name.startswith("model.")}
    assert set(info["missing_keys"]) == own - saved.keys()


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


@pytest.mark.parametrize("loaded", HEADS, ids=lambda auto: auto.__name__)
@pytest.mark.parametrize("saved", HEADS, ids=lambda auto: auto.__name__)
def test_any_head_loads_from_the_checkpoint_of_any_other(
    saved: type, loaded: type, tmp_path: Path, transformers_log: pytest.LogCaptureFixture
) -> None:
    first = HEADS[saved](config())
    first.save_pretrained(tmp_path)
    second, info = loaded.from_pretrained(tmp_path, output_loading_info=True)

    def named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Weights by their name in the base layout."""
        prefix = "model." if isinstance(model, QRNNModel) else ""
        return {prefix + name: tensor for name, tensor in model.state_dict().items()}

    there, here = named(first), named(second)
    common = there.keys() & here.keys()
    assert "model.shared.weight" in common
    assert all(torch.equal(there[name], here[name]) for name in common)
    # Every weight the checkpoint lacks is reported by its name, and nothing else is.
    prefix = "model." if loaded is AutoModel else ""
    assert {prefix + name for name in info["missing_keys"]} == here.keys() - there.keys()
    report = transformers_log.text
    assert ("MISSING" in report) == bool(here.keys() - there.keys())
    assert not info["mismatched_keys"]
    assert second.config.is_encoder_decoder == (loaded in (AutoModel, AutoModelForSeq2SeqLM))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
def test_dtype_is_that_asked_for(auto: type, dtype: torch.dtype, folder: Path) -> None:
    model = auto.from_pretrained(folder, dtype=dtype).eval()
    assert {p.dtype for p in model.parameters()} == {dtype}
    ids = torch.tensor([[5, 6, 7, 1]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    result = model(input_ids=ids, **more)[0]
    assert result.dtype == dtype
    assert result.isfinite().all()


def test_dtype_auto_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    QRNNForCausalLM(config()).to(torch.bfloat16).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_map(device_map: str | dict[str, str], folder: Path) -> None:
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, device_map=device_map)
    ids = torch.tensor([[5, 6, 7, 1]]).to(model.device)
    options = {"num_beams": 2, "max_new_tokens": 6}
    got = model.generate(input_ids=ids, **options)
    assert torch.equal(got.cpu(), plain.generate(input_ids=ids.cpu(), **options))


@pytest.mark.parametrize("tied", [False, True])
def test_shards_hold_the_whole_model(tied: bool, tmp_path: Path) -> None:
    settings = config()
    settings.tie_word_embeddings = tied
    model = QRNNForConditionalGeneration(settings)
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    shards = list(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "model.safetensors.index.json").is_file()
    again, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_revision_is_the_one_asked_for(tmp_path: Path) -> None:
    """Two commits of one repository, laid out as the Hub's client keeps them."""
    repository = tmp_path / "models--someone--qrnn"
    (repository / "refs").mkdir(parents=True)
    models = {}
    for ref, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        models[ref] = QRNNForConditionalGeneration(config())
        models[ref].save_pretrained(repository / "snapshots" / commit)
        (repository / "refs" / ref).write_text(commit)
    for revision, ref in ((None, "main"), ("main", "main"), ("v1", "v1"), ("b" * 40, "v1")):
        options = {} if revision is None else {"revision": revision}
        again = AutoModelForSeq2SeqLM.from_pretrained(
            "someone/qrnn", cache_dir=tmp_path, local_files_only=True, **options
        )
        assert torch.equal(again.lm_head.weight, models[ref].lm_head.weight)
    with pytest.raises(OSError, match="find them in the cached files"):
        AutoModelForSeq2SeqLM.from_pretrained(
            "someone/qrnn", cache_dir=tmp_path, local_files_only=True, revision="v2"
        )


def test_both_copies_live_in_one_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package and the code of a model folder: equal results, and each takes the other's."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    kind = dynamic_module_utils.get_class_from_dynamic_module(
        "modeling_qrnn.QRNNForConditionalGeneration", str(folder)
    )
    assert kind is not QRNNForConditionalGeneration
    remote = kind.from_pretrained(folder).eval()
    local = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert type(local) is QRNNForConditionalGeneration
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 4, 8, 1], [15, 6, 1, 0, 0, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    labels = torch.tensor([[5, 6, 1], [7, 1, -100]])
    for model in (remote, local):
        model(**inputs, labels=labels).loss.backward()  # either copy's registered operation
    for (name, mine), (_, theirs) in zip(
        remote.named_parameters(), local.named_parameters(), strict=True
    ):
        assert torch.equal(mine.grad, theirs.grad), name
    assert torch.equal(
        remote.generate(**inputs, num_beams=2, max_new_tokens=5),
        local.generate(**inputs, num_beams=2, max_new_tokens=5),
    )
    encoded = local.get_encoder()(**inputs)
    step = {"decoder_input_ids": torch.tensor([[3], [3]]), "encoder_outputs": encoded}
    mask = inputs["attention_mask"]
    with torch.no_grad():
        cache = local(attention_mask=mask, **step).past_key_values
    again = copy.deepcopy(cache)
    assert torch.equal(
        remote(attention_mask=mask, past_key_values=cache, **step).logits,
        local(attention_mask=mask, past_key_values=again, **step).logits,
    )
    kind.register_for_auto_class("AutoModelForSeq2SeqLM")  # as the Auto classes do
    remote.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/modeling_qrnn.py").read_text() == (
        folder / "modeling_qrnn.py"
    ).read_text()
    assert json.loads((tmp_path / "again/config.json").read_text())["auto_map"] == AUTO_MAP
    assert_equal_weights(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again"), local)


def assert_equal_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    state = second.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


def test_tokenizer_asks_nothing_with_the_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, transformers_log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abc")["input_ids"] == [5, 6, 7, 1]
    assert not transformers_log.records


# One process without the package: it answers for every claim made of saved folders.
REMOTE = """
import builtins, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_qrnn":
            raise ModuleNotFoundError(name)

questions = []

def ask(text=""):
    questions.append(text)
    raise EOFError  # as without a terminal

sys.meta_path.insert(0, Blocked())
builtins.input = ask
import torch, transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
folder, again, *autos = sys.argv[1:]
found = {}

# The tokenizer needs no code of ours and runs none.
AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
assert questions == []
tokenizer = AutoTokenizer.from_pretrained(folder)  # transformers asks about the config beside it,
assert len(questions) == 1                         # and goes on without an answer
assert not any(name.startswith("transformers_modules.") for name in sys.modules)
try:
    AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    found["refused"] = str(error)

questions.clear()
AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(["abc def", "k"], return_tensors="pt", padding=True)
decoder = torch.tensor([[3, 5, 6], [3, 7, 8]])
options = {"trust_remote_code": True, "output_loading_info": True}
for auto in autos:
    model, info = getattr(transformers, auto).from_pretrained(folder, **options)
    assert type(model).__module__.startswith("transformers_modules.")
    model.eval()
    more = {"decoder_input_ids": decoder} if model.config.is_encoder_decoder else {}
    more["output_hidden_states"] = True
    with torch.no_grad():
        output = model(**inputs, **more)
    states = output.get("hidden_states") or output.get("decoder_hidden_states")
    found[auto] = [type(model).__name__, sorted(info["missing_keys"]), states[-1].tolist()]
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True, dtype="float64")
assert model.is_remote_code()
found["tokens"] = model.generate(**inputs, num_beams=2, max_new_tokens=7).tolist()
model.save_pretrained(again, max_shard_size="2KB")
AutoModelForSeq2SeqLM.from_pretrained(again, trust_remote_code=True, device_map="auto")
assert questions == []
print(json.dumps(found))
"""


def test_folder_loads_where_the_package_is_not_installed(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", REMOTE, str(folder), str(again), *(auto.__name__ for auto in HEADS)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert "trust_remote_code=True" in found["refused"]

    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 4, 8, 9, 10, 1], [15, 1, 0, 0, 0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 8, [1] * 2 + [0] * 6]),
    }
    decoder = torch.tensor([[3, 5, 6], [3, 7, 8]])
    for auto, kind in HEADS.items():
        model, info = auto.from_pretrained(folder, output_loading_info=True)
        more = {"decoder_input_ids": decoder} if model.config.is_encoder_decoder else {}
        # Without the package there is no compiled library.
        with torch.no_grad(), use_backend("torch"):
            output = model.eval()(**inputs, output_hidden_states=True, **more)
        states = output.get("hidden_states") or output.get("decoder_hidden_states")
        name, missing, remote = found[auto.__name__]
        assert (name, missing) == (kind.__name__, sorted(info["missing_keys"]))
        assert states[-1].tolist() == remote
    double = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64)
    tokens = double.generate(**inputs, num_beams=2, max_new_tokens=7)
    assert tokens.tolist() == found["tokens"]
    assert_equal_weights(AutoModelForSeq2SeqLM.from_pretrained(again, dtype="auto"), double)
    assert (again / "modeling_qrnn.py").is_file()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("max_shard_size", ["5GB", "2KB"])
def test_integers_are_no_weights(tmp_path: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    config = QRNNConfig(vocab_size=9, embedding_size=4, hidden_size=4)
    model = QRNNForConditionalGeneration(config)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    found = sorted(tmp_path.glob("*.safetensors"))
    assert (len(found) > 1) == (max_shard_size == "2KB")
    content = load_file(found[-1])
    name = sorted(content)[-1]
    save_file({**content, name: content[name].to(dtype)}, found[-1], metadata={"format": "pt"})
    for auto in (AutoModelForSeq2SeqLM, AutoModel):
        with pytest.raises(ValueError, match="must be of floating-point numbers, but is") as caught:
            auto.from_pretrained(tmp_path, dtype=torch.float32)
        assert f"the weight `{name}`" in str(caught.value)
    with pytest.raises(ValueError, match="must be of floating-point numbers, but is of torch"):
        QRNNForConditionalGeneration.from_pretrained(
            None,
            config=config,
            state_dict={"lm_head.bias": torch.zeros(9, dtype=dtype)},
            dtype=torch.float32,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_precisions_still_load(tmp_path: Path, dtype: torch.dtype) -> None:
    model = QRNNForConditionalGeneration(QRNNConfig(vocab_size=9, embedding_size=4, hidden_size=4))
    model.to(dtype).save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == dtype
