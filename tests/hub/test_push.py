"""hf_qrnn.hub.push: one commit, nothing too much in it, whatever the network does."""

import json
import logging
import re
import traceback
from pathlib import Path

import pytest
from hub_fixtures import (
    CLIENT_WARNING,
    REPO,
    Row,
    fault_rows,
    save_model,
    save_run,
    travellers,
)
from hub_stand_in import READ_TOKEN, WRITE_TOKEN, Fault, HubStandIn
from huggingface_hub import HfApi, get_token
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_qrnn.cli.main import main
from hf_qrnn.data.hub_replies import split_revision
from hf_qrnn.hub.client import HubError
from hf_qrnn.hub.push import check_access, push, without_folders
from hf_qrnn.model.modeling_qrnn import AUTO_MAP
from hf_qrnn.translation.translator import load_translator

TRAVELLERS = travellers()
SHARED = TRAVELLERS | {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "run.json", "metrics.jsonl", "learning_curve.png",
    "verification.safetensors", ".gitattributes", "custom_generate/generate.py",
}  # fmt: skip
COMMIT = "POST .*/commit/"

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


def commits(hub: HubStandIn, repo: str = REPO) -> int:
    """Commits beside the one that the Hub makes with the repository."""
    return len(hub.repos[repo].commits) - 1


# ------------------------------------------------------------------ what is sent


def test_push_is_one_commit_of_the_shared_files(run: Path, hub: HubStandIn) -> None:
    result = push(run, REPO)
    assert commits(hub) == 1
    files = hub.files(REPO)
    # tokenizers may add a file or two of its own; nothing else may be there.
    assert set(files) == SHARED
    assert set(result.changed) == SHARED - {".gitattributes"}
    assert result.url == f"{hub.url}/{REPO}/commit/{result.commit}"
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert f'name = "{REPO}"' in files["README.md"].decode()
    assert b"/home/ann" not in b"".join(files.values())
    assert json.loads(files["run.json"])["options"] == {"train_source": "train.de"}


def test_unchanged_push_makes_no_commit(run: Path, hub: HubStandIn) -> None:
    first = push(run, REPO)
    uploads = hub.count("PUT /upload")
    second = push(run, REPO)
    assert commits(hub) == 1
    assert (second.commit, second.changed, second.was_lost) == (first.commit, [], False)
    assert hub.count("PUT /upload") == uploads
    assert hub.count(COMMIT) == 1


def test_push_removes_what_an_earlier_push_left_and_nothing_else(
    tmp_path: Path, hub: HubStandIn
) -> None:
    save_run(tmp_path / "run")
    push(tmp_path / "run", REPO)
    stale = {"model-00001-of-00002.safetensors": b"w", "old_qrnn.py": b"", "notes.txt": b"mine"}
    api = HfApi(endpoint=hub.url)
    for name, content in stale.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO)
    before = commits(hub)
    result = push(tmp_path / "run", REPO)
    assert commits(hub) == before + 1
    assert result.changed == ["model-00001-of-00002.safetensors", "old_qrnn.py"]
    assert set(hub.files(REPO)) == SHARED | {"notes.txt"}


def test_private_revision_and_tag(run: Path, hub: HubStandIn) -> None:
    result = push(run, REPO, private=True, revision="next", tag="v1.0")
    repo = hub.repos[REPO]
    assert repo.private
    assert repo.branches["next"] == repo.tags["v1.0"] == result.commit
    assert set(hub.files(REPO, "main")) == {".gitattributes"}
    assert push(run, REPO, private=True, revision="next", tag="v1.0").commit == result.commit
    with pytest.raises(ValueError, match=r"`tag` must be new .* but 'v1\.0' names the commit"):
        push(run, REPO, tag="v1.0")
    with pytest.raises(ValueError, match=r"`revision` must be a branch, but 'v1\.0' is a tag"):
        push(run, REPO, revision="v1.0")
    assert commits(hub) == 1


def test_a_public_repository_is_not_taken_for_a_private_one(run: Path, hub: HubStandIn) -> None:
    push(run, REPO)
    with pytest.raises(ValueError, match=r"`private` must be left out for .* public already"):
        push(run, REPO, private=True)


def test_someone_elses_commit_is_not_overwritten(
    run: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, api = HfApi.create_commit, HfApi(endpoint=hub.url)
    push(run, "someone/other")

    def meanwhile(self: HfApi, *args: object, **kwargs: object) -> object:
        monkeypatch.setattr(HfApi, "create_commit", create)
        api.upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id=REPO)
        return create(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", meanwhile)
    push(run, REPO)
    assert set(hub.files(REPO)) == SHARED | {"notes.txt"}
    assert [status for _, path, status in hub.log if "/commit/" in path][-2:] == [412, 200]


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize("row", fault_rows("push", fails=False), ids=str)
def test_push_survives(row: Row, run: Path, hub: HubStandIn, waits: list[float]) -> None:
    fault = row.fault()
    hub.faults.append(fault)
    result = push(run, REPO)
    assert fault.times == 0
    assert commits(hub) == 1
    assert set(hub.files(REPO)) == SHARED
    assert result.commit == hub.repos[REPO].branches["main"]
    assert waits
    if fault.retry_after is not None:
        assert fault.retry_after in waits


def test_lost_reply_is_recognised(run: Path, hub: HubStandIn) -> None:
    hub.faults.append(Fault("lost_reply", COMMIT))
    result = push(run, REPO, tag="v1.0")
    assert commits(hub) == 1
    assert hub.count(COMMIT) == 1
    assert result.was_lost
    assert set(result.changed) == SHARED - {".gitattributes"}
    assert hub.repos[REPO].tags == {"v1.0": result.commit}


@pytest.mark.parametrize("path", ["/branch/", "/tag/"])
def test_lost_reply_to_a_name_is_recognised(path: str, run: Path, hub: HubStandIn) -> None:
    hub.faults.append(Fault("lost_reply", f"POST .*{path}"))
    result = push(run, REPO, revision="next", tag="v1.0")
    assert hub.repos[REPO].tags == {"v1.0": result.commit}
    assert commits(hub) == 1


@pytest.mark.parametrize("row", fault_rows("push", fails=True), ids=str)
def test_push_fails_with_one_sentence(row: Row, run: Path, hub: HubStandIn) -> None:
    hub.faults.append(row.fault())
    with pytest.raises(HubError) as caught:
        push(run, REPO)
    assert row.error is not None
    assert row.error in str(caught.value)
    assert "\n" not in str(caught.value)
    assert commits(hub) == 0
    hub.faults.clear()
    push(run, REPO)
    assert commits(hub) == 1


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ("hf_nobody_knows_this_one", "the Hub has no such model or hides it from you"),
        (READ_TOKEN, "your token is not allowed to"),
    ],
    ids=["unknown", "read-only"],
)
def test_token_without_rights(
    token: str, sentence: str, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=sentence):
        check_access(REPO)


def test_token_shows_nowhere(
    run: Path,
    hub: HubStandIn,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert get_token() == WRITE_TOKEN
    with caplog.at_level(logging.DEBUG):
        assert main(["push", str(run), REPO]) == 0
        hub.faults.append(Fault("status", COMMIT, times=99, status=403))
        (run / "metrics.jsonl").write_text("{}\n")
        assert main(["push", str(run), REPO]) == 2
        with pytest.raises(HubError) as caught:
            push(run, REPO)
    output = capsys.readouterr()
    shown = [output.out, output.err, caplog.text, *traceback.format_exception(caught.value)]
    shown += [content.decode("latin-1") for content in hub.files(REPO).values()]
    shown += [body.decode("latin-1") for body in hub.bodies]
    shown += [path for _, path, _ in hub.log]
    assert not any(WRITE_TOKEN in text for text in shown)
    assert not any(WRITE_TOKEN.encode() in p.read_bytes() for p in run.rglob("*") if p.is_file())


def test_error_of_the_hub_is_shown_without_the_token(run: Path, hub: HubStandIn) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "list_repo_refs", lambda *_: int(f"saw {WRITE_TOKEN}"))
        with pytest.raises(HubError, match=r"saw hf_\*\*\*"):
            push(run, REPO)


def test_a_file_with_the_token_is_not_sent(tmp_path: Path, hub: HubStandIn) -> None:
    save_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"environment": WRITE_TOKEN}))
    with pytest.raises(ValueError, match=r"must not hold your token, but 'metrics\.jsonl' does"):
        push(tmp_path, REPO)
    assert hub.log == []


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", r"lacks config\.json"),
        ("model.safetensors", r"lacks model\.safetensors"),
        ("tokenizer_config.json", r"lacks tokenizer_config\.json"),
        ("pooling_qrnn.py", r"lacks the code pooling_qrnn\.py"),
        ("README.md", "must hold a card"),
    ],
)
def test_incomplete_folder_is_refused(
    missing: str, sentence: str, tmp_path: Path, hub: HubStandIn
) -> None:
    save_run(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=sentence):
        push(tmp_path, REPO)
    assert hub.log == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"auto_map": {"AutoModel": "modeling_qrnn.QRNNModel"}}, "no full `auto_map`"),
        ({"model_type": "bart"}, "the model_type 'bart' instead of 'qrnn'"),
    ],
    ids=["auto_map", "model_type"],
)
def test_config_of_another_kind_is_refused(
    change: dict[str, object], sentence: str, tmp_path: Path, hub: HubStandIn
) -> None:
    save_run(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=sentence):
        push(tmp_path, REPO)


def test_bad_card_is_refused_before_anything_is_sent(tmp_path: Path, hub: HubStandIn) -> None:
    save_run(tmp_path)
    (tmp_path / "README.md").write_text("# No front matter\n")
    with pytest.raises(ValueError, match="a card with front matter"):
        push(tmp_path, REPO)
    assert hub.log == []


def test_offline_is_one_sentence(
    run: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="must reach the Hub, but HF_HUB_OFFLINE forbids it"):
        push(run, REPO)


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a/b@v1", "", "a/"])
def test_repository_names(repo: str, run: Path) -> None:
    with pytest.raises(ValueError, match="`REPO` must be like user/name"):
        push(run, repo)
    with pytest.raises(ValueError, match="`hub_model_id` must be like user/name"):
        check_access(repo)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/x/train.de", "train.de"),
        ("--config=/etc/x/y.yaml --cpu", "--config=y.yaml --cpu"),
        ("data/train.de", "data/train.de"),
        ("../data/train.de", "../data/train.de"),
        ("https://hub.example/a/b", "https://hub.example/a/b"),
        ("a/b and 3 /4", "a/b and 3 /4"),
        ("/4 of it", "/4 of it"),
        ("/home/ann/my data/train.de", "train.de"),
        ("/home/ann lee/x/my data.de", "my data.de"),
        ("/home/ann/my data/", "my data/"),
        ("/home/ann lee/a.de,/home/ann lee/b.de", "a.de,b.de"),
        ("--config=/home/ann lee/y.yaml", "--config=y.yaml"),
        ("read from '/home/ann lee/x.de' and \"/home/lee/b c/y\"", "read from 'x.de' and \"y\""),
        ("see /home/ann/x/ and it's in c/d", "see x/ and it's in c/d"),
        ("see this: /home/ann/x", "see this: x"),
        ("read a=b of https://hub.example/a b/c", "read a=b of https://hub.example/a b/c"),
    ],
)
def test_without_folders(text: str, expected: str) -> None:
    assert without_folders({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/home/ann/t.py --data /home/ann/a.de --cpu", "t.py --data a.de --cpu"),
        ("'/home/ann lee/t.py' --data '/home/ann lee/my data/a b.de'", "t.py --data 'a b.de'"),
        ("t.py '--config=/home/ann lee/c.yaml' -a b/c", "t.py --config=c.yaml -a b/c"),
        ("t.py --about 'it is /home/ann/x'", "t.py --about 'it is x'"),
        ("t.py --about 'no end /home/ann/x", "t.py --about 'no end x"),
    ],
)
def test_without_folders_in_a_command(command: str, expected: str) -> None:
    assert without_folders({"command": command}) == {"command": expected}


def test_split_revision() -> None:
    assert split_revision("a/b@v1.0") == ("a/b", "v1.0")
    assert split_revision("a/b") == ("a/b", None)


# ------------------------------------------------------------------ transformers' own way


def test_model_and_tokenizer_push_themselves_and_load(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model.push_to_hub(REPO)
    tokenizer.push_to_hub(REPO)
    HfApi(endpoint=hub.url).create_tag(REPO, tag="v1")
    files = hub.files(REPO)
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert {name for name in files if name.endswith(".py")} == TRAVELLERS
    save_model(tmp_path / "model", seed=1).push_to_hub(REPO)

    again = AutoModelForSeq2SeqLM.from_pretrained(REPO, revision="v1", trust_remote_code=True)
    state = again.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    newest = AutoModelForSeq2SeqLM.from_pretrained(REPO, trust_remote_code=True)
    assert not newest.lm_head.weight.equal(state["lm_head.weight"])
    ids = AutoTokenizer.from_pretrained(REPO, trust_remote_code=True)("abc")["input_ids"]
    assert ids == tokenizer("abc")["input_ids"]

    # From the cache, with the Hub gone.
    requests = len(hub.log)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = AutoModelForSeq2SeqLM.from_pretrained(REPO, revision="v1")
    assert offline.lm_head.weight.equal(state["lm_head.weight"])
    assert len(hub.log) == requests


def test_translate_takes_a_name_and_a_revision(
    run: Path, hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, REPO, tag="v1.0")
    (tmp_path / "in").write_text("abc\n")
    expected = load_translator(str(run)).translate(["abc"])[0][0].text
    for name in (REPO, f"{REPO}@v1.0"):
        assert main(["translate", name, "-i", str(tmp_path / "in")]) == 0
        assert capsys.readouterr().out == expected + "\n"
    assert main(["translate", f"{REPO}@none", "-i", str(tmp_path / "in")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: `MODEL` must be .*, but is 'someone/qrnn-de-en@none'", error)


def test_command_line_says_what_it_did(
    run: Path, hub: HubStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["push", str(run), REPO, "--revision", "next", "--tag", "v2", "--private"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    commit = hub.repos[REPO].tags["v2"]
    assert output.out == f"{hub.url}/{REPO}/commit/{commit}\n"
    assert output.err.endswith(f"{len(SHARED) - 1} files in one commit\n")
    assert main(arguments) == 0
    assert capsys.readouterr().err.endswith("nothing changed, no commit was made\n")
    assert main(["push", str(run / "none"), REPO]) == 2
    assert "`MODEL` must be a folder with a saved model" in capsys.readouterr().err
