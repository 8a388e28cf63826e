"""hf_qrnn.verification: what is verified is what was pushed, and nothing less passes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import CLIENT_WARNING, REPO, Row, fault_rows, save_model, save_run
from hub_stand_in import WRITE_TOKEN, Blob, HubStandIn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForSequenceClassification,
    QRNNModel,
    use_backend,
    verification,
)
from hf_qrnn.cli import main
from hf_qrnn.hub import push
from hf_qrnn.hub_client import HubError
from hf_qrnn.verification import VERIFICATION_FILE, verify, write_verification

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

REAL_LOAD = verification._load
WRONG_CODE = b"""

_right = QRNNForConditionalGeneration.forward


def _wrong(self, *args, **kwargs):
    output = _right(self, *args, **kwargs)
    output.logits = 1.1 * output.logits
    return output


QRNNForConditionalGeneration.forward = _wrong
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Stands in for the fresh processes, which take seconds each; whether each had the package."""
    calls: list[bool] = []

    def load(*_: object, with_package: bool) -> dict[str, Any]:
        calls.append(with_package)
        return {
            "loaded": ["AutoModel"], "is_remote": not with_package, "same_ids": True,
            "difference": 0.0, "largest": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(verification, "_load", load)
    return calls


# ------------------------------------------------------------------ the stored file


def test_stored_logits_are_the_models(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    write_verification(tmp_path)
    tensors = load_file(tmp_path / VERIFICATION_FILE)
    with safe_open(tmp_path / VERIFICATION_FILE, framework="pt") as file:
        check = json.loads(file.metadata()["check"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert check["auto_class"] == "AutoModelForSeq2SeqLM"
    ids = [tokenizer(text)["input_ids"] for text in check["texts"]]
    assert len(set(map(len, ids))) == 2
    mask = tensors["attention_mask"]
    rows = zip(tensors["input_ids"], mask, strict=True)
    assert [row[kept.bool()].tolist() for row, kept in rows] == ids
    with torch.no_grad(), use_backend("torch"):
        expected = model(
            input_ids=tensors["input_ids"], attention_mask=mask,
            decoder_input_ids=tensors["decoder_input_ids"],
        ).logits  # fmt: skip
    assert torch.equal(tensors["logits"], expected)


def test_stored_file_is_the_same_every_time(tmp_path: Path) -> None:
    save_model(tmp_path)
    contents = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        write_verification(tmp_path)
        assert torch.get_num_threads() == threads
        contents.add((tmp_path / VERIFICATION_FILE).read_bytes())
    torch.set_num_threads(1)
    assert len(contents) == 1


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (QRNNForCausalLM, (2, 14, 24)),
        (QRNNForSequenceClassification, (2, 2)),
        (QRNNModel, None),
    ],
)
def test_every_head_that_has_logits_is_stored(
    kind: type, shape: tuple[int, ...] | None, tmp_path: Path
) -> None:
    tokens = save_model(tmp_path).config.vocab_size
    kind(
        QRNNConfig(vocab_size=tokens, embedding_size=6, hidden_size=8, encoder_layers=1,
                   decoder_layers=1)
    ).save_pretrained(tmp_path)  # fmt: skip
    if shape is None:
        with pytest.raises(ValueError, match="`MODEL` must be a model with a head"):
            write_verification(tmp_path)
        return
    write_verification(tmp_path)
    assert load_file(tmp_path / VERIFICATION_FILE)["logits"].shape == shape


# ------------------------------------------------------------------ the whole way


def test_push_and_verify_from_the_command_line(run: Path, hub: HubStandIn) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "hf_qrnn", *arguments], capture_output=True, text=True
        )
        assert WRITE_TOKEN not in done.stdout + done.stderr
        return done

    pushed = push(run, REPO, private=True, tag="v1.0")
    done = command("verify", f"{REPO}@v1.0")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    count = len(hub.files(REPO))
    assert lines[0] == f"{count} files of commit {pushed.commit[:12]} have the hashes the Hub lists"
    autos = "AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, "
    autos += "AutoModelForSequenceClassification load"
    # Without the package there is no compiled library: torch pools, and rounds otherwise.
    for line, where, most in ((lines[1], "with", 0.0), (lines[2], "without", 1e-6)):
        start, _, difference = line.rpartition(" ")
        assert start == f"{autos} {where} the package; the largest difference of a logit is"
        assert float(difference) <= most
    assert lines[3] == f"{REPO}@v1.0 is what was pushed"


def test_changed_code_does_not_pass(
    run: Path, hub: HubStandIn, loaded: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes that agree, but code that gives other logits than those stored."""
    push(run, REPO)
    commit = hub.repos[REPO].find("main")
    assert commit is not None
    before = commit.files["modeling_qrnn.py"].content
    commit.files["modeling_qrnn.py"] = Blob(before + WRONG_CODE, False)
    stub = verification._load

    def load(*args: Any, with_package: bool) -> dict[str, Any]:
        # The package's own code is not concerned; its process would only take time.
        return (stub if with_package else REAL_LOAD)(*args, with_package=with_package)

    monkeypatch.setattr(verification, "_load", load)
    with pytest.raises(HubError, match=r"logits must be those stored .* without the package"):
        verify(REPO)
    assert loaded == [True]


# ------------------------------------------------------------------ faults on the way


@pytest.mark.parametrize("row", fault_rows("verify", fails=False), ids=str)
def test_verify_survives(row: Row, run: Path, hub: HubStandIn, loaded: list[bool]) -> None:
    fault, commit = row.fault(), push(run, REPO).commit
    hub.faults.append(fault)
    said: list[str] = []
    found = verify(REPO, report=said.append)
    assert fault.times == 0
    assert (found.commit, found.num_files) == (commit, len(hub.files(REPO)))
    assert loaded == [True, False]
    assert len(said) == 3


@pytest.mark.parametrize("row", fault_rows("verify", fails=True), ids=str)
def test_verify_fails_with_one_sentence(
    row: Row, run: Path, hub: HubStandIn, loaded: list[bool]
) -> None:
    push(run, REPO)
    hub.faults.append(row.fault())
    with pytest.raises(HubError) as caught:
        verify(REPO)
    assert row.error is not None
    assert row.error in str(caught.value)
    assert "\n" not in str(caught.value)
    assert loaded == []


def test_pickles_and_a_missing_record_do_not_pass(
    run: Path, hub: HubStandIn, loaded: list[bool]
) -> None:
    push(run, REPO)
    commit = hub.repos[REPO].find("main")
    assert commit is not None
    commit.files["optimizer.bin"] = Blob(b"pickle", False)
    with pytest.raises(HubError, match=r"'optimizer\.bin' must not be there: a pickle"):
        verify(REPO)
    del commit.files["optimizer.bin"], commit.files[VERIFICATION_FILE]
    with pytest.raises(HubError, match=r"'verification\.safetensors' must be there"):
        verify(REPO)


def test_unknown_names_are_one_sentence(
    run: Path, hub: HubStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, REPO)
    assert main(["verify", f"{REPO}@none"]) == 2
    assert "must find its revision, but the Hub has none" in capsys.readouterr().err
    assert main(["verify", "someone/else"]) == 2
    assert "the Hub knows no such model or not you" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"is_remote": False}, "The code must be the repository's without the package"),
        ({"same_ids": False}, "The tokenizer must give the stored ids"),
        ({"difference": 1e-2}, "differ by 1.00e-02, the largest being 1.00e"),
        ({"difference": float("nan")}, "differ by nan"),
    ],
    ids=["code", "tokenizer", "logits", "nan"],
)
def test_what_a_process_found_is_judged(found: dict[str, Any], sentence: str) -> None:
    right = {"is_remote": True, "same_ids": True, "difference": 1e-6, "largest": 1.0}
    assert verification._check_loaded(right, with_package=False) == 1e-6
    with pytest.raises(HubError, match=sentence):
        verification._check_loaded({**right, **found}, with_package=False)


def test_translation_of_what_was_pushed_is_the_same(run: Path, hub: HubStandIn) -> None:
    push(run, REPO)
    local = AutoModelForSeq2SeqLM.from_pretrained(run).eval()
    remote = AutoModelForSeq2SeqLM.from_pretrained(REPO, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(REPO, trust_remote_code=True)
    inputs = tokenizer(["abc def", "gh"], return_tensors="pt", padding=True)
    assert torch.equal(local.generate(**inputs), remote.generate(**inputs))
    save_file({"x": torch.zeros(1)}, run / "other.safetensors")
    assert push(run, REPO).changed == []
