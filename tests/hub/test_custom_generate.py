"""The engine behind `generate(custom_generate="folder or repository")`."""

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import CLIENT_WARNING, REPO, save_model, save_run
from hub_stand_in import HubStandIn
from transformers import AutoModelForSeq2SeqLM, dynamic_module_utils
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_qrnn import QRNNConfig, QRNNForSequenceClassification
from hf_qrnn.hub import custom_generate
from hf_qrnn.hub.files import CUSTOM_GENERATE, put_custom_generate
from hf_qrnn.hub.push import push
from hf_qrnn.translation import native_generate as module

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

INPUTS = {
    "input_ids": torch.tensor([[5, 7, 9, 6, 1], [8, 4, 1, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    save_model(place)
    put_custom_generate(place)
    return place


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of folders is imported from a place of this test's own.

    Python keeps where it found the package of all such code, and another test may have removed it.
    """
    place = tmp_path / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(place))
    monkeypatch.syspath_prepend(str(place))
    for name in [x for x in sys.modules if x.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the searches of the engine."""
    made: list[int] = []

    def read(*arguments: Any) -> Any:
        made.append(1)
        return original(*arguments)

    original = module._network_of
    monkeypatch.setattr(module, "_network_of", read)
    return made


def remote_model(name: str | Path) -> Any:
    """Load a model by the code that lies beside it, as where the package is not known."""
    kind: Any = get_class_from_dynamic_module(
        "modeling_qrnn.QRNNForConditionalGeneration", str(name)
    )
    model = kind.from_pretrained(name, trust_remote_code=True).eval()
    assert not kind.__module__.startswith("hf_qrnn")
    return model


def check(model: Any, name: str, searches: list[int], **others: Any) -> None:
    """Compare the engine's search with torch's."""
    for number, mode in enumerate(MODES.values(), 1):
        # transformers says the scores of beams where it also says those of steps.
        expected = model.generate(
            **INPUTS, **mode, max_new_tokens=9, output_scores="num_beams" in mode
        )
        assert len(searches) == number - 1  # the plain search is torch's
        found = model.generate(
            **INPUTS, **mode, max_new_tokens=9, custom_generate=name, trust_remote_code=True,
            **others,
        )  # fmt: skip
        assert len(searches) == number
        if "num_beams" in mode:
            assert found.sequences.shape[0] == 4
            torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)
            found, expected = found.sequences, expected.sequences
        assert torch.equal(found, expected)


@pytest.mark.parametrize("code", ["package", "folder"])
def test_a_folder_names_the_engine(code: str, folder: Path, searches: list[int]) -> None:
    if code == "package":
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    else:
        model = remote_model(folder)
    # transformers would put the folder's function in the place of the method.
    assert "generate" not in vars(model)
    check(model, str(folder), searches)


def test_limits_of_rows_by_the_folders_own_code(folder: Path) -> None:
    model = remote_model(folder)
    kind: Any = get_class_from_dynamic_module("limits_qrnn.RowLimits", str(folder))
    limits = [kind(torch.tensor([2, 4]))]
    options = {"stopping_criteria": limits, "custom_generate": module.native_generate}
    model.lm_head.bias.data[5] += 100.0  # never an end
    found = model.generate(**INPUTS, max_new_tokens=9, **options)
    assert (found[:, 1:] == 5).sum(1).tolist() == [2, 4]


def test_a_repository_names_the_engine(
    tmp_path: Path, hub: HubStandIn, searches: list[int]
) -> None:
    save_run(tmp_path / "run")
    push(tmp_path / "run", REPO, tag="v1")
    path = Path(custom_generate.__file__)
    assert hub.files(REPO)[CUSTOM_GENERATE] == path.read_bytes()
    assert len(path.read_bytes()) < 3000
    assert push(tmp_path / "run", REPO).changed == []
    model = AutoModelForSeq2SeqLM.from_pretrained(REPO, trust_remote_code=True)
    check(model, REPO, searches, revision="v1")


def test_a_push_of_another_head_takes_it_away(tmp_path: Path, hub: HubStandIn) -> None:
    save_run(tmp_path)
    push(tmp_path, REPO)
    tokens = json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    sizes = {"embedding_size": 6, "hidden_size": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = QRNNConfig(vocab_size=tokens, **sizes)
    QRNNForSequenceClassification(config).save_pretrained(tmp_path)
    assert CUSTOM_GENERATE in push(tmp_path, REPO).changed
    assert CUSTOM_GENERATE not in hub.files(REPO)


def test_a_class_that_keeps_the_function_has_the_plain_search(
    folder: Path, searches: list[int]
) -> None:
    """Classes of older releases do not know that transformers replaces the method."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    expected = model.generate(**INPUTS, max_new_tokens=9)
    for number in range(2):
        model.generate = functools.partial(custom_generate.generate, model=model)
        other = copy.deepcopy(model)
        given = (INPUTS["input_ids"],) if number else ()
        rest = {"attention_mask": INPUTS["attention_mask"]} if number else INPUTS
        for one in (model, other, model):
            assert torch.equal(one.generate(*given, **rest, max_new_tokens=9), expected)
        assert searches == []
    model.generate = functools.partial(custom_generate.generate, model=model)
    check(model, str(folder), searches)


# The package is not there, and nothing of it is asked for before the engine is.
ABSENT = """
import sys
sys.modules["hf_qrnn"] = None
import torch
from transformers import AutoModelForSeq2SeqLM, dynamic_module_utils
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor([[5, 7, 9, 6, 1]])
print(model.generate(ids, max_new_tokens=9).tolist())
try:
    model.generate(ids, max_new_tokens=9, custom_generate=sys.argv[1], trust_remote_code=True)
except ImportError as error:
    print(error)
"""


def test_without_the_package_one_sentence_says_what_is_needed(folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ABSENT, str(folder)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids, sentence = done.stdout.splitlines()
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    given = INPUTS["input_ids"][:1]
    assert json.loads(ids) == model.generate(given, max_new_tokens=9).tolist()
    assert sentence.startswith("`custom_generate` of this model needs the package hf_qrnn ")
    assert "Install it with pip" in sentence


def test_what_the_engine_refuses_is_refused_through_this_door(folder: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    door = {"custom_generate": str(folder), "trust_remote_code": True, "max_new_tokens": 5}
    for options, sentence in (
        ({"do_sample": True}, "`custom_generate` must be None for another search"),
        ({"assistant_model": model}, "`assistant_model` must be None for the engine, but is 'QRNN"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.generate(INPUTS["input_ids"][:1], **door, **options)
