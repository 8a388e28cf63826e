"""hf_qrnn.hub.verify: what is verified is what was pushed, and nothing less passes."""

import hashlib
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
)
from hf_qrnn.cli.main import main
from hf_qrnn.hub import verify as verification
from hf_qrnn.hub.client import HubError
from hf_qrnn.hub.push import push
from hf_qrnn.hub.verify import VERIFICATION_FILE, verify, write_verification
from hf_qrnn.model.modeling_qrnn import HEADS

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
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    del files[VERIFICATION_FILE]
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert check["files"] == hashes
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
    autos = ", ".join(sorted(kind.registration.auto_class for kind in HEADS)) + " load"
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
    with pytest.raises(HubError, match=r"logits must be those stored .* without the package") as e:
        verify(REPO)
    assert str(e.value).endswith("Since the push there changed: code (modeling_qrnn.py).")
    assert loaded == [True]


# ------------------------------------------------------------------ what changed after the push


def change(hub: HubStandIn, name: str, content: bytes | None) -> str:
    """Commit a file of another content, or without it; the commit."""
    repo = hub.repos[REPO]
    files = dict(repo.commits[repo.branches["main"]].files)
    is_large = files.pop(name, Blob(b"", False)).is_large
    if content is not None:
        files[name] = Blob(content, is_large)
    return repo.commit("main", f"change {name}", files).sha


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("modeling_qrnn.py", "code"),
        ("config.json", "config"),
        ("generation_config.json", "config"),
        ("tokenizer.json", "tokenizer"),
        ("model.safetensors", "weights"),
    ],
)
def test_a_later_commit_is_not_what_was_pushed(
    name: str,
    kind: str,
    run: Path,
    hub: HubStandIn,
    loaded: list[bool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Even one that changes no logit, which the stand-in for the processes says here."""
    push(run, REPO, tag="v1")
    commit = change(hub, name, hub.files(REPO)[name] + b"\n")
    assert main(["verify", REPO]) == 2
    output = capsys.readouterr()
    assert output.err == (
        f"error: {REPO} at commit {commit[:12]} must be what was pushed, but a later commit "
        f"changed: {kind} ({name}).\n"
    )
    assert "is what was pushed" not in output.out
    assert main(["verify", f"{REPO}@v1"]) == 0
    assert capsys.readouterr().out.endswith(f"{REPO}@v1 is what was pushed\n")


def test_every_kind_that_changed_is_named(run: Path, hub: HubStandIn, loaded: list[bool]) -> None:
    push(run, REPO)
    change(hub, "evil_qrnn.py", b"import os\n")
    change(hub, "losses_qrnn.py", None)
    change(hub, "config.json", hub.files(REPO)["config.json"] + b" ")
    with pytest.raises(HubError) as caught:
        verify(REPO)
    changed = "config (config.json), code (evil_qrnn.py, losses_qrnn.py)."
    assert str(caught.value).endswith(f"a later commit changed: {changed}")


def test_another_card_is_still_what_was_pushed(
    run: Path, hub: HubStandIn, loaded: list[bool]
) -> None:
    push(run, REPO)
    change(hub, "README.md", b"---\nlicense: mit\n---\n")
    change(hub, "metrics.jsonl", None)
    change(hub, "notes.txt", b"mine")
    assert verify(REPO).has_hashes


def test_a_push_without_hashes_is_not_said_to_be_unchanged(
    run: Path, hub: HubStandIn, loaded: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, REPO)
    record(hub, tmp_of(hub, run), {"files": None})
    assert main(["verify", REPO]) == 0
    out = capsys.readouterr().out
    assert "is what was pushed" not in out
    assert "whether its files changed since the push is not known" in out


def tmp_of(hub: HubStandIn, run: Path) -> Path:
    """The pushed file of inputs and logits, in a folder to change it in."""
    path = run.parent / VERIFICATION_FILE
    path.write_bytes(hub.files(REPO)[VERIFICATION_FILE])
    return path


def record(
    hub: HubStandIn, path: Path, changes: dict[str, Any] | None, *, without: str | None = None
) -> None:
    """Commit another file of inputs and logits: entries changed, or a tensor left out."""
    tensors = {name: t for name, t in load_file(path).items() if name != without}
    with safe_open(path, framework="pt") as file:
        check = json.loads(file.metadata()["check"])
    metadata = None if changes is None else {"check": json.dumps(check | changes)}
    save_file(tensors, path, metadata=metadata)
    change(hub, VERIFICATION_FILE, path.read_bytes())


# ------------------------------------------------------------------ damaged repositories


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (VERIFICATION_FILE, b"", "is damaged: Error while deserializing header"),
        (VERIFICATION_FILE, b"\xff" * 64, "is damaged: "),
        ("config.json", b"{", "must be a JSON object, but is damaged"),
        ("config.json", b"[]", "must be a JSON object, but is an array"),
        ("config.json", b"\xff\xfe", "must be UTF-8 text"),
        ("config.json", b'{"model_type": "qrnn"}', "must have an `auto_map`, .* but has none"),
        ("config.json", b'{"auto_map": ["AutoModel"]}', "must have an `auto_map`, .* but has none"),
        ("config.json", b'{"auto_map": {"AutoModel": "a.B"}}', "must have 'AutoModelForSeq2SeqLM'"),
        ("config.json", None, "must be there, but is not"),
    ],
)
def test_a_damaged_repository_is_one_sentence(
    name: str,
    content: bytes | None,
    sentence: str,
    run: Path,
    hub: HubStandIn,
    loaded: list[bool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    push(run, REPO)
    change(hub, name, content)
    assert main(["verify", REPO]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: `{name}` must ")
    with pytest.raises(HubError, match=sentence):
        verify(REPO)
    assert loaded == []


@pytest.mark.parametrize(
    ("changes", "without", "sentence"),
    [
        (None, None, "does not say which class and texts"),
        ({"auto_class": 7}, None, "does not say which class and texts"),
        ({"texts": "abc"}, None, "does not say which class and texts"),
        ({"files": ["a"]}, None, "does not say which class and texts"),
        ({}, "logits", "lacks 'logits'"),
        ({}, "input_ids", "lacks 'input_ids'"),
        ({"auto_class": "AutoTokenizer"}, None, "must have 'AutoTokenizer'"),
    ],
)
def test_a_foreign_record_is_one_sentence(
    changes: dict[str, Any] | None,
    without: str | None,
    sentence: str,
    run: Path,
    hub: HubStandIn,
    loaded: list[bool],
) -> None:
    push(run, REPO)
    record(hub, tmp_of(hub, run), changes, without=without)
    with pytest.raises(HubError, match=sentence):
        verify(REPO)
    assert loaded == []


def test_a_file_that_the_hub_does_not_list_is_no_part_of_what_was_pushed(
    run: Path, hub: HubStandIn, loaded: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, REPO)
    listed = verification.files_of
    monkeypatch.setattr(
        verification, "files_of", lambda *a: [e for e in listed(*a) if e.path != "config.json"]
    )
    with pytest.raises(HubError, match=r"'config\.json' must be in the Hub's listing, but is not"):
        verify(REPO)
    assert loaded == []


def test_a_process_without_an_answer_is_one_sentence(
    run: Path, hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, REPO)
    silent = tmp_path / "silent.py"
    for text, sentence in (
        ("", "The model must load with the package, but its process gave no answer"),
        ("raise OSError('in ' + '/home/ann/' + 'x' * 999)", "package, but: OSError: in ~/xxx"),
    ):
        silent.write_text(text)
        monkeypatch.setenv("HOME", "/home/ann")
        monkeypatch.setattr(verification, "_LOADER", silent)
        with pytest.raises(HubError, match=sentence) as caught:
            verify(REPO)
        assert len(str(caught.value)) < 400


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
    assert "the Hub has no such model or hides it from you" in capsys.readouterr().err


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
