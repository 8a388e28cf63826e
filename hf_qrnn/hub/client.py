"""Calls to the Hub: they are repeated with patience, and a failure is one sentence.

No error shows the token.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from hf_qrnn.data.hub_replies import (
    answer,
    causes,
    first_sentence,
    one_line,
    reason,
    redacted,
    reply_of,
)

_TRANSIENT_STATUS = frozenset({408, 412, 425, 429, 500, 502, 503, 504})
MAX_ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # Seconds.
# What the client raises for a reply that is JSON, but not the JSON it wants.
_MISREAD = (KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError)
_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_LOGIN = "`hf auth login` stores a token, HF_TOKEN overrides it"
# A 403 is for one of two reasons, and the Hub says in words alone which.
_ABOUT_RIGHTS = re.compile(
    r"(?i)token|permi|rights?\b|authori|allowed|access|scope|role|credential"
)
_ABOUT_PLANS = re.compile(r"(?i)quota|storage|limit|exceed|billing|payment|upgrade|disabled|too ")

_T = TypeVar("_T")


class HubError(OSError):
    """A failure between us and the Hub, in one sentence without the token."""


class CorruptReplyError(ValueError):
    """A reply of the Hub that says nothing sensible."""


def retry_while_busy(call: Callable[[], _T], *, what: str) -> _T:
    """Return the result of `call`, tried again while the Hub is busy, failing or unreachable.

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
                raise HubError(_refusal(error, what)) from _shown(error)
            if attempt == MAX_ATTEMPTS:
                raise HubError(
                    f"The {what} failed {attempt} times, last with: {_described(cause)} Nothing "
                    "is half done; the same command goes on where this one stopped."
                ) from _shown(error)
            time.sleep(min(_LONGEST_WAIT, _retry_after(cause) or wait))
            wait *= 2
    raise AssertionError("the last attempt returns or raises")


def _shown(error: BaseException) -> BaseException | None:
    """Return the error as a cause to show in a traceback; None where it holds a secret."""
    texts = [str(cause) for cause in causes(error)]
    return error if all(redacted(text) == text for text in texts) else None


def _transient_cause(error: Exception) -> BaseException | None:
    """Find the error in the chain of causes that may pass by itself, or None."""
    for cause in causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return None
        if _status(cause) >= 400:
            return cause if _status(cause) in _TRANSIENT_STATUS else None
        # The HTTP library differs between versions of the client; the names of bases do not.
        kinds = {kind.__name__ for kind in type(cause).__mro__}
        if kinds & {"TransportError", "DecodingError"}:
            return cause
        if isinstance(cause, OSError) and str(cause).startswith("Consistency check failed"):
            return cause
    misread = (json.JSONDecodeError, CorruptReplyError, *_MISREAD)
    return next((cause for cause in causes(error) if isinstance(cause, misread)), None)


def _status(error: BaseException) -> int:
    """Return the status of the reply that an error holds itself, or 0."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0


def _retry_after(cause: BaseException) -> float | None:
    if _status(cause) == 0:
        return None
    seconds = str(reply_of(cause).headers.get("Retry-After", ""))
    return float(seconds) if seconds.isdigit() else None


def _described(cause: BaseException) -> str:
    """Say in a sentence what may pass by itself."""
    if _status(cause):
        return answer(reply_of(cause)) + "."
    if isinstance(cause, (json.JSONDecodeError, *_MISREAD)):
        return f"a reply that cannot be read ({type(cause).__name__}: {one_line(str(cause))})."
    return first_sentence(cause)


def _refusal(error: Exception, what: str) -> str:
    """Say in one sentence what no repetition mends."""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        return f"The {what} must reach the Hub, but HF_HUB_OFFLINE forbids it."
    response = reply_of(error)
    if response is None:
        return f"The {what} failed: {first_sentence(error)}"
    status, said = response.status_code, reason(response)
    because = f": {said}" if said else ""
    cause = next((x for x in causes(error) if isinstance(x, HfHubHTTPError)), None)
    if status == 404 and "xet-write-token" in str(cause):
        return f"The {what} must find Xet storage, but this Hub has none: set HF_HUB_DISABLE_XET=1."
    if isinstance(cause, RevisionNotFoundError):
        return f"The {what} must find its revision, but the Hub has none of that name{because}."
    if isinstance(cause, EntryNotFoundError):
        return f"The {what} must find its file, but the Hub has none of that name{because}."
    is_unknown = isinstance(cause, RepositoryNotFoundError) and not isinstance(
        cause, GatedRepoError
    )
    if is_unknown or status == 401:
        sentence = f"The {what} must be allowed, but the Hub has no such model or hides it from you"
        return f"{sentence}{because} ({_LOGIN})."
    is_right = not said or (_ABOUT_RIGHTS.search(said) and not _ABOUT_PLANS.search(said))
    if status == 403 and is_right:
        sentence = f"The {what} must be allowed, but your token is not allowed to"
        return f"{sentence}{because} ({_LOGIN})."
    # A bad card: the client says which file the Hub refuses.
    if isinstance(error, ValueError) and not isinstance(error, (HfHubHTTPError, UnicodeError)):
        return f"The {what} failed: {one_line(str(error)).rstrip('.')}."
    return f"The {what} failed: the Hub answered {answer(response)}."


# ------------------------------------------------------------------ what is there


def commit_of(api: HfApi, repo: str, revision: str | None) -> str:
    """Return the commit that a revision names; None is the main branch.

    Raises:
        CorruptReplyError: If the Hub names none, which `retry_while_busy` tries again.
    """
    commit = api.model_info(repo, revision=revision).sha
    if not (isinstance(commit, str) and _HASH.fullmatch(commit)):
        raise CorruptReplyError("The Hub must name the commit of every revision, but does not.")
    return commit


def files_of(api: HfApi, repo: str, commit: str) -> list[RepoFile]:
    """List the files of a commit with their hashes.

    Raises:
        CorruptReplyError: If an entry of the listing has no path inside the repository, size or
            hash, which `retry_while_busy` tries again.
    """
    listed = api.list_repo_tree(repo, revision=commit, recursive=True)
    files = [entry for entry in listed if isinstance(entry, RepoFile)]
    for entry in files:
        digest = entry.blob_id if entry.lfs is None else entry.lfs.sha256
        path = entry.path
        is_inside = isinstance(path, str) and path != "" and "\\" not in path
        if is_inside:
            parts = PurePosixPath(path).parts
            is_inside = not path.startswith("/") and ".." not in parts
        is_sized = type(entry.size) is int and entry.size >= 0
        if not (is_inside and is_sized and _HASH.fullmatch(str(digest))):
            raise CorruptReplyError(
                "The Hub must list files with path, size and hash, but lists "
                f"{one_line(repr(path))} otherwise."
            )
    return files


def quiet_http_log() -> None:
    """Leave requests that went well out of a program's log, where signed addresses show too."""
    for name in ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def has_hash(path: Path, entry: RepoFile) -> bool:
    """Compare a file's hash with the one that the Hub lists: SHA-256 if large, else git's."""
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
