"""Puts the Hub's answers into words: its own reason, short, and without any secret."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_LONGEST = 300  # Characters of a reason.
# A proxy's error is a page: its title says what is wrong, its script and style nothing.
_TAG = re.compile(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>")
_TITLE = re.compile(r"(?is)<(title|h1|message)\b[^>]*>(.*?)</\1>")
_SECRETS = (
    # The Hub's tokens, and what a header of an HTTP request would hold.
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9_]{20,}"), r"\1_***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 ***"),
    # Of an address: what signs it, and who asks.
    (re.compile(r"(?i)([?&;][\w.-]*(?:token|signature|credential|key|secret)[\w.-]*=)[^&\s\"'<>]+"),
     r"\1***"),
    (re.compile(r"(\w://)[^/@\s]+@"), r"\1***@"),
)  # fmt: skip


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it, the last first."""
    seen: set[int] = set()  # a chain may lead back to itself
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def reply_of(error: BaseException) -> Any:
    """Return the HTTP reply that led to an error, or None."""
    for cause in causes(error):
        # By attribute, not by type: the client's HTTP library differs between its versions.
        response = getattr(cause, "response", None)
        if isinstance(getattr(response, "status_code", None), int):
            return response
    return None


def answer(response: Any) -> str:
    """Give status and reason of a reply, as "413 Content Too Large: the file has 60 GB"."""
    status = response.status_code
    try:
        head = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:  # a number of a proxy's own
        head = str(status)
    said = reason(response)
    return f"{head}: {said}" if said else head


def reason(response: Any) -> str:
    """Give the Hub's reason for a refusal; empty where it gives none."""
    said = [response.headers.get("X-Error-Message") or "", *_messages(_content(response))]
    kept: list[str] = []
    # The longest first: the header repeats the body's message, or a part of it.
    for line in sorted((one_line(text) for text in said), key=len, reverse=True):
        if not any(line.lower() in longer.lower() for longer in kept):
            kept.append(line)
    # Back in the order in which the Hub said them.
    order = [line for line in dict.fromkeys(one_line(text) for text in said) if line in kept]
    return _cut("; ".join(line for line in order if line)).rstrip(".")


def _content(response: Any) -> Any:
    """Parse the body as JSON; else give its text, of a page its title or what is not a tag."""
    try:
        body = bytes(response.content)
    except RuntimeError:  # a stream that nobody read
        return None
    text = body.decode("utf-8", errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    kind = str(response.headers.get("Content-Type", "")).lower()
    if not (text.lstrip().startswith("<") or "html" in kind or "xml" in kind):
        return text
    titles = [found for _, found in _TITLE.findall(text)]
    return [_TAG.sub(" ", titles[0] if titles else text)]


def _messages(content: Any) -> Iterator[str]:
    """Yield every message in what the Hub sends as an error: a text, a list, or an object."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for entry in content:
            yield from _messages(entry)
    elif isinstance(content, dict):
        for key in ("error", "error_description", "message", "errors", "detail"):
            yield from _messages(content.get(key))


def first_sentence(error: BaseException) -> str:
    """Give an error's first line as a sentence, with the next line if it ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return _cut(redacted(text)).rstrip(".") + "."


def one_line(text: str) -> str:
    """Put a text on one line, short, without control characters and secrets."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return _cut(redacted(" ".join(printable.split())))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3].rstrip() + "..."


def redacted(text: str) -> str:
    """Take tokens, signatures of addresses and the user's folder out of a text."""
    token = get_token()
    if token:  # of whatever form: another Hub's tokens may not begin with hf_
        text = text.replace(token, "hf_***")
    for pattern, stand_in in _SECRETS:
        text = pattern.sub(stand_in, text)
    home = os.path.expanduser("~")
    if len(home) > 1:  # "/" is a folder of nobody's
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return text


# The files that loading asks for. A model may lack some of them, which is no refusal.
_ASKED_FOR = ("config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json")


def split_revision(name: str) -> tuple[str, str | None]:
    """Split "user/name@revision" into name and revision; None where there is none."""
    repo, _, revision = name.partition("@")
    return repo, revision or None


def hub_answer(error: BaseException, repo: str, revision: str | None) -> str | None:
    """Give the Hub's answer as a sentence, if that is why a model did not load, else None.

    transformers takes a refusal for a file that is not there, and forgets the reason: so the Hub
    is asked again. A name that the Hub does not know is None: transformers says that well.

    Args:
        error: What loading raised.
        repo: The repository.
        revision: Its branch, tag or commit; None = main.
    """
    kinds = (RepositoryNotFoundError, RevisionNotFoundError)
    is_unknown = any(isinstance(cause, kinds) for cause in causes(error))
    response = reply_of(error)
    for name in _ASKED_FOR if response is None else ():
        try:
            get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))
        except Exception as again:  # no answer either, or no name of a repository
            response = reply_of(again)
            if response is None or response.status_code != 404:
                break
    is_gated = any(isinstance(cause, GatedRepoError) for cause in causes(error))
    if response is None or response.status_code == 404 or (is_unknown and not is_gated):
        return None
    return f"the Hub answered {answer(response)}."
