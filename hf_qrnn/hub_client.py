"""Talking to the Hub with patience, and saying in one sentence what went wrong.

No error shows the token.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")

_TRANSIENT_STATUS = frozenset({408, 412, 425, 429, 500, 502, 503, 504})
MAX_ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # Seconds.

_T = TypeVar("_T")


class HubError(OSError):
    """What went wrong between us and the Hub, in one sentence without the token."""


def split_revision(name: str) -> tuple[str, str | None]:
    """Split "user/name@revision" into name and revision; None where there is none."""
    repo, _, revision = name.partition("@")
    return repo, revision or None


def patiently(call: Callable[[], _T], *, what: str) -> _T:
    """The result of `call`, tried again while the Hub is busy, failing or unreachable.

    Waits 1, 2, 4, ... seconds between attempts, or as long as the Hub asks, a minute at most.

    Args:
        call: Must be safe to repeat: what an attempt did and the next finds done is no error.
        what: The call in words for the error, as "upload to someone/model".

    Raises:
        HubError: If the Hub refuses, or still fails at the last attempt.
    """
    wait = _FIRST_WAIT
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return call()
        except HubError:
            raise
        except Exception as error:  # the client wraps causes in RuntimeError, OSError and its own
            cause = _transient_cause(error)
            if cause is None:
                raise HubError(_refusal(error, what)) from error
            if attempt == MAX_ATTEMPTS:
                raise HubError(
                    f"The {what} failed {attempt} times, last with: {_first_line(cause)} Nothing "
                    "is half done; the same command goes on where this one stopped."
                ) from error
            time.sleep(min(_LONGEST_WAIT, _retry_after(cause) or wait))
            wait *= 2
    raise AssertionError("the last attempt returns or raises")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _transient_cause(error: Exception) -> BaseException | None:
    """What in the chain of causes may pass by itself, or None."""
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return None
        if isinstance(cause, HfHubHTTPError):
            return cause if _status(cause) in _TRANSIENT_STATUS else None
        # The HTTP library differs between versions of the client; the name of the base does not.
        if any(kind.__name__ == "TransportError" for kind in type(cause).__mro__):
            return cause
        if isinstance(cause, OSError) and str(cause).startswith("Consistency check failed"):
            return cause
        if isinstance(cause, json.JSONDecodeError):  # half of an answer
            return cause
    return None


def _status(error: HfHubHTTPError | None) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _retry_after(cause: BaseException) -> float | None:
    if not isinstance(cause, HfHubHTTPError) or _status(cause) == 0:
        return None
    seconds = str(cause.response.headers.get("Retry-After", ""))
    return float(seconds) if seconds.isdigit() else None


def _refusal(error: Exception, what: str) -> str:
    """One sentence for what no repetition mends."""
    cause = next((x for x in _causes(error) if isinstance(x, HfHubHTTPError)), None)
    status = _status(cause)
    login = "`hf auth login` stores a token, HF_TOKEN overrides it"
    if any(isinstance(x, OfflineModeIsEnabled) for x in _causes(error)):
        return f"The {what} must reach the Hub, but HF_HUB_OFFLINE forbids it."
    if cause is not None and "xet-write-token" in str(cause):
        return f"The {what} must find Xet storage, but this Hub has none: set HF_HUB_DISABLE_XET=1."
    if isinstance(cause, RevisionNotFoundError):
        return f"The {what} must find its revision, but the Hub has none of that name."
    if isinstance(cause, RepositoryNotFoundError) or status == 401:
        return f"The {what} must be allowed, but the Hub knows no such model or not you ({login})."
    if status == 403:
        return f"The {what} must be allowed, but your token is not allowed to ({login})."
    return f"The {what} failed: {_first_line(error if cause is None else cause)}"


def _first_line(error: BaseException) -> str:
    """The first sentence of an error that may fill a page, without any token."""
    lines = [line.strip() for line in _redacted(str(error)).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return text.rstrip(".") + "."


def _redacted(text: str) -> str:
    token = get_token()
    return _TOKEN.sub("hf_***", text.replace(token, "hf_***") if token else text)


def has_hash(path: Path, entry: RepoFile) -> bool:
    """Whether a file's content has the hash that the Hub lists: SHA-256 if large, else git's."""
    size = path.stat().st_size
    if entry.lfs is not None:
        digest, expected = hashlib.sha256(), entry.lfs.sha256
    else:
        digest, expected = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), entry.blob_id
    if size != entry.size:
        return False
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == expected
