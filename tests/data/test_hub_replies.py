"""hf_qrnn.data.hub_replies: the Hub's own reason reaches the user, and no secret does."""

import json
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest
from hub_fixtures import CLIENT_WARNING, REPO, save_run
from hub_stand_in import WRITE_TOKEN, Fault, HubStandIn
from huggingface_hub import HfApi

from hf_qrnn.cli.main import main
from hf_qrnn.data.hub_replies import redacted
from hf_qrnn.data.tokenization import load_tokenizer
from hf_qrnn.hub.client import HubError, commit_of, files_of, quiet_http_log, retry_while_busy
from hf_qrnn.hub.push import push

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

COMMIT, TREE = "POST .*/commit/", "GET .*/tree/"
JSON = {"Content-Type": "application/json"}
PAGE = b"<html><head><title>Too big</title></head><body>" + b"<p>word</p>" * 5000
OTHER = "hf_abcdefghijklmnopqrstuvwxyz01234567"
LOGIN = "(`hf auth login` stores a token, HF_TOKEN overrides it)."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


def refusal(run: Path, hub: HubStandIn, fault: Fault) -> str:
    """Return the sentence of a push that meets a fault."""
    hub.faults.append(fault)
    with pytest.raises(HubError) as caught:
        push(run, REPO)
    shown = "".join(traceback.format_exception(caught.value))
    assert WRITE_TOKEN not in shown
    assert OTHER not in shown
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(message: str) -> dict[str, Any]:
    return {"body": json.dumps({"error": message}).encode(), "headers": JSON}


# ------------------------------------------------------------------ the Hub's words


@pytest.mark.parametrize(
    ("status", "reply", "sentence"),
    [
        (400, said("The name is taken"), "the Hub answered 400 Bad Request: The name is taken."),
        (402, said("Pay first."), "the Hub answered 402 Payment Required: Pay first."),
        (403, said("Private storage quota of your token's plan exceeded"),
         "the Hub answered 403 Forbidden: Private storage quota of your token's plan exceeded."),
        (403, said("Read-only token"),
         f"must be allowed, but your token is not allowed to: Read-only token {LOGIN}"),
        (403, {"body": b""}, f"must be allowed, but your token is not allowed to {LOGIN}"),
        (401, said("Invalid credentials"),
         f"the Hub has no such model or hides it from you: Invalid credentials {LOGIN}"),
        (403, {**said("Access is restricted to a list"), "headers": {"X-Error-Code": "GatedRepo"}},
         f"your token is not allowed to: Access is restricted to a list {LOGIN}"),
        (413, said("Your file is too large"), ": Your file is too large."),
        (422, {"body": b'{"errors": ["no a", {"message": "no b"}]}'}, ": no a; no b."),
        (422, {"body": b'["no a", "no b"]'}, ": no a; no b."),
        (422, {"body": b'"just text"'}, ": just text."),
        (422, {"body": b'{"error": {"message": "nested"}}'}, ": nested."),
        (422, {"body": b'{"error": "e", "error_description": "f"}'}, ": e; f."),
        (422, {"body": b'{"errors": 7, "message": null}'}, "the Hub answered 422 Unprocessable"),
        (413, {"body": b"plain words"}, ": plain words."),
        (413, {"body": b"\xff\xfe\x00"}, "the Hub answered 413 "),
        (413, {"body": b""}, "the Hub answered 413 "),
        (413, {"body": PAGE, "headers": {"Content-Type": "text/html"}}, ": Too big."),
        (413, {"body": b"<Error><Code>X</Code><Message>Too large</Message></Error>"},
         ": Too large."),
        (400, {"body": b"", "headers": {"X-Error-Message": "In the header"}}, ": In the header."),
        (400, {"body": b'{"error": "the same"}', "headers": {"X-Error-Message": "The same"}},
         "400 Bad Request: The same."),
    ],
)  # fmt: skip
def test_the_reason_of_a_refusal_is_shown(
    status: int, reply: dict[str, Any], sentence: str, run: Path, hub: HubStandIn
) -> None:
    error = refusal(run, hub, Fault("status", COMMIT, status=status, **reply))
    assert error.startswith(f"The push to {REPO} ")
    assert sentence in error
    assert "://" not in error
    assert "Request ID" not in error


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_reason_of_a_failure_is_shown(status: int, run: Path, hub: HubStandIn) -> None:
    reply = said("Come back on Monday")
    error = refusal(run, hub, Fault("status", COMMIT, 99, status, **reply))
    assert f"failed 6 times, last with: {status} " in error
    assert ": Come back on Monday. Nothing is half done" in error


def test_a_long_reason_is_cut(run: Path, hub: HubStandIn) -> None:
    error = refusal(run, hub, Fault("status", COMMIT, status=400, **said("word " * 1000)))
    assert "word word" in error
    assert len(error) < 400


def test_a_quota_of_xet_storage_is_no_lack_of_it(run: Path, hub: HubStandIn) -> None:
    class RefusedError(Exception):
        """As the client's: with the reply it met."""

        response = type("Reply", (), {
            "status_code": 403, "headers": {}, "content": b'{"error": "Quota exceeded"}',
        })  # fmt: skip

    def call() -> None:
        raise RefusedError("403 for url: /xet-write-token/main")

    with pytest.raises(HubError, match="403 Forbidden: Quota exceeded"):
        retry_while_busy(call, what="push")


@pytest.mark.parametrize("status", [400, 403, 429])
def test_secrets_in_a_reason_are_not_shown(
    status: int, run: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    message = (
        f"saw {WRITE_TOKEN} and {OTHER}, Authorization: Bearer abcdefghij, "
        "https://ann:word@x.org/f?token=abc&X-Amz-Signature=def in /home/ann/runs/mine"
    )
    error = refusal(run, hub, Fault("status", COMMIT, 99, status, **said(message)))
    assert "saw hf_*** and hf_***, Authorization: Bearer ***, " in error
    assert "https://***@x.org/f?token=***&X-Amz-Signature=*** in ~/runs/mine" in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/x and /home/anna/x", "~/x and /home/anna/x"),
        ("token hf_short", "token hf_short"),
        ("hf_qrnn/hub/push.py", "hf_qrnn/hub/push.py"),
    ],
)
def test_redacted(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert redacted(text) == expected


# ------------------------------------------------------------------ replies that cannot be read


LISTED = {"type": "file", "path": "a.txt", "size": 1, "oid": "0" * 40}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b'[{"type": "fi', b"\xff\xfe[]", b"null", b"7", b'{"error": "x"}', b"[7]",
        json.dumps([{k: v for k, v in LISTED.items() if k != "path"}]).encode(),
        json.dumps([{**LISTED, "path": "../a.txt"}]).encode(),
        json.dumps([{**LISTED, "path": 7}]).encode(),
        json.dumps([{**LISTED, "size": "x"}]).encode(),
        json.dumps([{**LISTED, "oid": "0" * 39 + "q"}]).encode(),
        json.dumps([{**LISTED, "lfs": {}}]).encode(),
    ],
)  # fmt: skip
def test_a_corrupt_listing_is_tried_again(
    body: bytes, run: Path, hub: HubStandIn, waits: list[float]
) -> None:
    fault = Fault("status", TREE, status=200, body=body, headers=JSON)
    hub.faults.append(fault)
    result = push(run, REPO)
    assert fault.times == 0
    assert waits == [1.0]
    assert result.commit == hub.repos[REPO].branches["main"]


@pytest.mark.parametrize("request_", ["GET .*/refs", "GET .*/revision/", COMMIT])
def test_a_corrupt_reply_is_tried_again(
    request_: str, run: Path, hub: HubStandIn, waits: list[float]
) -> None:
    fault = Fault("status", request_, status=200, body=b'{"id": "a/b"}', headers=JSON)
    hub.faults.append(fault)
    push(run, REPO)
    assert fault.times == 0
    assert waits
    assert len(hub.repos[REPO].commits) == 2


def test_a_listing_that_stays_corrupt_is_one_sentence(run: Path, hub: HubStandIn) -> None:
    error = refusal(run, hub, Fault("status", TREE, 99, 200, body=b"[7]", headers=JSON))
    assert "failed 6 times, last with: a reply that cannot be read (TypeError: " in error


def test_listings_and_commits_of_a_whole_repository(run: Path, hub: HubStandIn) -> None:
    push(run, REPO)
    api = HfApi(endpoint=hub.url)
    commit = commit_of(api, REPO, None)
    assert commit == hub.repos[REPO].branches["main"]
    assert {entry.path for entry in files_of(api, REPO, commit)} == set(hub.files(REPO))


# ------------------------------------------------------------------ other doors to the Hub


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer"])
def test_translate_says_why_the_hub_refuses(
    file: str, run: Path, hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers calls what the Hub refuses missing, and says no reason."""
    push(run, REPO)
    (tmp_path / "in").write_text("abc\n")
    reply: dict[str, Any] = {"headers": {"X-Error-Message": f"Quota of {OTHER} reached"}}
    hub.faults.append(Fault("status", f".*/resolve/.*/{file}", 99, 403, body=b"", **reply))
    assert main(["translate", REPO, "-i", str(tmp_path / "in")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(
        f"but is {REPO!r}: the Hub answered 403 Forbidden: Quota of hf_*** reached."
    )


def test_load_tokenizer_says_why_the_hub_refuses(run: Path, hub: HubStandIn) -> None:
    push(run, REPO)
    reply: dict[str, Any] = {"headers": {"X-Error-Message": "Quota reached"}}
    hub.faults.append(Fault("status", ".*/resolve/.*/tokenizer", 99, 403, body=b"", **reply))
    with pytest.raises(ValueError, match=r": the Hub answered 403 Forbidden: Quota reached\.$"):
        load_tokenizer(REPO)
    with pytest.raises(ValueError, match=r"but is 'someone/none'\.$"):
        load_tokenizer("someone/none")


def test_requests_are_no_lines_of_a_programs_log(
    run: Path, hub: HubStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:  # a command of an earlier test may have quieted them
            logging.getLogger(name).setLevel(logging.NOTSET)
        with caplog.at_level(logging.INFO):
            push(run, REPO)
            assert any("HTTP Request" in record.getMessage() for record in caplog.records)
            caplog.clear()
            quiet_http_log()
            push(run, "someone/other")
        assert not any("HTTP" in record.getMessage() for record in caplog.records)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
