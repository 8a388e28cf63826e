"""The push of a model folder to the Hub in one commit.

A push sends what a reader needs and nothing else of a run's folder: weights as safetensors, config
with the entries of all Auto classes, the code that travels, tokenizer, generation config, the run's
record and metrics, the card, and a small file of inputs and logits that `hf-qrnn verify` checks.

The token comes from `hf auth login` or HF_TOKEN; it is no argument here, and no error shows it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
)
from yaml import YAMLError

from hf_qrnn.data.json_files import read_json, read_text

from .client import HubError, commit_of, files_of, has_hash, retry_while_busy
from .files import kind_of, put_custom_generate, shared_files
from .verify import auto_class_of, write_verification

_REPO_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# A "/" after a letter, "." or ":" is of a relative path or an address, and stays. Among other words
# only quotes tell where a path with blanks ends.
_QUOTED = re.compile(r"""(?<=')/[^']*(?=')|(?<=")/[^"]*(?=")""")
_FOLDERS_IN_TEXT = re.compile(r"(?<![\w.:/])/(?:[^\s/\"']+/)+(?=[^\s/\"'])")
_FOLDERS = re.compile(r"/(?:[^/]+/)+(?=[^/])")
# Between paths in a row, and between a flag and its path; not before the "//" of an address.
_SEAM = re.compile(r"(?<=[,;:=])(?=/(?!/))")
# Keys of tokenizer_config.json that name files.
_PATH_KEY = re.compile(r"\w+_files?|source_spm|target_spm|vocab|name_or_path")
# The line of a card that names the model to load, as the card's template writes it.
_USAGE_NAME = re.compile(r'^name = ".*"$', flags=re.MULTILINE)


@dataclass(frozen=True)
class PushResult:
    """The result of a push.

    Attributes:
        commit: The commit that holds the folder now.
        url: Its page.
        changed: Paths that the commit changed or removed; none where all was there already.
        was_lost: The commit was made by an attempt whose reply was lost.
    """

    commit: str
    url: str
    changed: list[str]
    was_lost: bool = False


def without_folders(value: Any) -> Any:
    """Return JSON content with absolute paths cut to their last part.

    The folders of one machine say nothing to another's reader, and may name a person. A text under
    the key "command" is a line of a shell; any other that begins with a path is one to its end,
    blanks and all.
    """
    if isinstance(value, str):
        return _cut_paths(value)
    if isinstance(value, dict):
        return {
            key: command_without_folders(entry)
            if key == "command" and isinstance(entry, str)
            else without_folders(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return value


def command_without_folders(command: str) -> str:
    """Return a line of a shell with the absolute paths in its words cut to their last part."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its end
        return _FOLDERS_IN_TEXT.sub("", command)
    return shlex.join(_cut_paths(word) for word in words)


def _cut_paths(text: str) -> str:
    parts = _SEAM.split(text)
    begins = [part.startswith("/") for part in parts]
    if begins[0] or (len(parts) > 1 and " " not in parts[0]):
        cut = (
            _FOLDERS.sub("", part, count=1) if is_path else part
            for part, is_path in zip(parts, begins, strict=True)
        )
        return "".join(cut)
    text = _QUOTED.sub(lambda path: _FOLDERS.sub("", path[0], count=1), text)
    return _FOLDERS_IN_TEXT.sub("", text)


# ------------------------------------------------------------------ what travels


def copy_shared_files(folder: Path, target: Path, repo: str, *, card: str | None = None) -> None:
    """Copy what a push sends from `folder` to `target`, fit for other people's eyes.

    Paths in run.json lose their folders, and the card's usage block names the repository. `card`
    stands in for a missing README.md. A translator gets `custom_generate/`.

    Raises:
        ValueError: If the folder is no complete model that transformers can load anywhere, or one
            of the files holds the token.
    """
    for path in shared_files(folder):
        shutil.copyfile(path, target / path.name)
    # Copies are changed, never the originals: a resumed run needs its paths.
    run, readme = target / "run.json", target / "README.md"
    if run.is_file():
        _write_json(run, without_folders(read_json(run)))
    _forget_paths(target / "tokenizer_config.json")
    if auto_class_of(read_json(target / "config.json")) == "AutoModelForSeq2SeqLM":
        put_custom_generate(target)
    if readme.is_file():
        card = read_text(readme)
    if card is not None:
        text = _USAGE_NAME.sub(f'name = "{repo}"', card, count=1)
        readme.write_text(text, encoding="utf-8")
    # Looked for in what is really sent, after every change: a log line or a card may hold it.
    token = (get_token() or "").encode()
    for name in _names(target):
        if token and token in (target / name).read_bytes():
            raise ValueError(f"`MODEL` must not hold your token, but {name!r} does.")


def _names(staged: Path) -> list[str]:
    """List the files of a folder as the Hub names them."""
    files = (path for path in staged.rglob("*") if path.is_file())
    return sorted(path.relative_to(staged).as_posix() for path in files)


def _forget_paths(path: Path) -> None:
    """Drop the files that a tokenizer's config names: transformers might open them.

    It finds those beside the config by their names; what an older release or another tool wrote
    here is a path of one machine.
    """
    config = read_json(path)
    kept = {
        key: value
        for key, value in config.items()
        if not (_PATH_KEY.fullmatch(key) and isinstance(value, (str, list)))
    }
    if kept != config:
        _write_json(path, kept)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------ push


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    card: str | None = None,
) -> PushResult:
    """Push a model folder in one commit; none where the Hub has all of it already.

    An attempt whose reply was lost is recognised by what the Hub holds, so repeating is safe.

    Args:
        folder: As `save_pretrained` or a training script writes it.
        repo: "user/name"; made if missing.
        private: Make a missing repository private; a public one is refused.
        revision: Branch to push to, made from main if missing; None is main.
        tag: Name for the commit; an existing tag is never moved.
        card: The card to send where the folder has no README.md.

    Raises:
        ValueError: If the folder is incomplete or an argument is wrong.
        HubError: If the Hub refuses or cannot be reached.
    """
    if not _REPO_NAME.fullmatch(repo):
        raise ValueError(f"`REPO` must be like user/name, but is {repo!r}.")
    with TemporaryDirectory() as name:
        staged = Path(name)
        copy_shared_files(Path(folder), staged, repo, card=card)
        # All that can be wrong with the folder is found before the Hub hears of it.
        _check_card(staged)
        write_verification(staged)
        target = _HubBranch(HfApi(), repo, revision or "main")
        target.prepare(private=private, tag=tag)
        result = target.commit(staged, f"Push {Path(folder).resolve().name} with hf_qrnn")
        # After the commit: a tag is never there without what it names.
        if tag is not None:
            target.add_tag(tag, result.commit)
        return result


def check_access(
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    is_to_come: bool = False,
) -> None:
    """Make the repository if missing: what speaks against a push shows before hours of training.

    Args:
        repo: As user/name.
        private: Make a missing repository private.
        revision: Branch to push to, made if missing; None = main.
        tag: Name for the commit.
        is_to_come: The tag must be new; else it may name what the branch holds.

    Raises:
        ValueError: If a name is none or taken.
        HubError: If the Hub refuses or cannot be reached.
    """
    if not _REPO_NAME.fullmatch(repo):
        raise ValueError(f"`hub_model_id` must be like user/name, but is {repo!r}.")
    target = _HubBranch(HfApi(), repo, revision or "main")
    target.prepare(private=private, tag=tag, is_to_come=is_to_come)


def _check_card(staged: Path) -> None:
    path = staged / "README.md"
    if not path.is_file():
        raise ValueError(
            "`MODEL` must hold a card (README.md), but has none: training scripts write one, and "
            "scripts/make_card.py does for an older run."
        )
    try:
        card = ModelCard(read_text(path))
    except YAMLError as error:
        # The rest of a YAML error is a picture of the place, over several lines.
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"`README.md` must have front matter, but it is damaged: {reason}."
        ) from error
    if not card.data.to_dict():
        raise ValueError("`MODEL` must hold a card with front matter, but README.md has none.")


@dataclass
class _HubBranch:
    """A branch of a repository."""

    api: HfApi
    repo: str
    branch: str

    def prepare(self, *, private: bool, tag: str | None, is_to_come: bool = False) -> None:
        """Make repository and branch where they are missing; find what speaks against the push.

        With `is_to_come` the commit to be named by `tag` is none that is there.
        """
        api, repo = self.api, self.repo
        what = f"push to {repo}"
        # None, not False: on the Hub, False would ask for a public one even where an
        # organisation makes them private.
        retry_while_busy(
            lambda: api.create_repo(repo, private=private or None, exist_ok=True), what=what
        )
        if private and not retry_while_busy(lambda: api.model_info(repo), what=what).private:
            raise ValueError(f"`private` must be left out for {repo}, which is public already.")
        refs = retry_while_busy(lambda: api.list_repo_refs(repo), what=what)
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        tags = {ref.name: ref.target_commit for ref in refs.tags}
        # A commit moves a branch; a tag must stay where it is.
        if self.branch in tags and self.branch not in branches:
            raise ValueError(f"`revision` must be a branch, but {self.branch!r} is a tag.")
        # Before the commit, since afterwards the model would be there without its name.
        if tag in tags and (is_to_come or tags[tag] != branches.get(self.branch)):
            rule = "new" if is_to_come else f"new or name what {self.branch} holds"
            raise ValueError(
                f"`tag` must be {rule}, but {tag!r} names the commit {tags[tag][:12]}."
            )
        if self.branch not in branches:
            retry_while_busy(
                lambda: api.create_branch(repo, branch=self.branch, exist_ok=True), what=what
            )

    def commit(self, staged: Path, message: str) -> PushResult:
        """Make the branch hold the staged files in one commit, if it does not already."""
        # Filled once an attempt was sent: if a later one finds nothing left to do, the reply of
        # that one was lost and its commit is ours.
        sent: list[str] = []

        def attempt() -> PushResult:
            head, changed, operations = self._changes(staged)
            if not operations:
                return PushResult(head, self._url(head), sent, was_lost=bool(sent))
            sent[:] = changed
            # With the parent named, nobody else's commit in between is overwritten: the Hub
            # answers 412 and the next attempt compares with the new state.
            made = self.api.create_commit(
                self.repo, operations, commit_message=message, revision=self.branch,
                parent_commit=head,
            )  # fmt: skip
            return PushResult(made.oid, self._url(made.oid), list(changed))

        return retry_while_busy(attempt, what=f"push to {self.repo}")

    def _changes(
        self, staged: Path
    ) -> tuple[str, list[str], list[CommitOperationAdd | CommitOperationDelete]]:
        """Return the branch's head, the paths that differ from the staged files, and operations."""
        head = commit_of(self.api, self.repo, self.branch)
        there = {entry.path: entry for entry in files_of(self.api, self.repo, head)}
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        changed = []
        for name in _names(staged):
            # By hash, so that the same folder again is no commit and no upload.
            if name in there and has_hash(staged / name, there[name]):
                continue
            changed.append(name)
            operations.append(CommitOperationAdd(name, str(staged / name)))
        for name in sorted(there):
            # A shard or module of an earlier push must not stay among the new ones. Files that are
            # none of a model's (pictures, a licence) belong to whoever put them there.
            if kind_of(name) is not None and not (staged / name).exists():
                changed.append(name)
                operations.append(CommitOperationDelete(name))
        return head, changed, operations

    def add_tag(self, tag: str, commit: str) -> None:
        """Name the commit; a tag of that name on the same commit is left as it is."""

        def attempt() -> None:
            # Asked at every attempt: one whose reply was lost may have made it.
            refs = self.api.list_repo_refs(self.repo)
            found = {ref.name: ref.target_commit for ref in refs.tags}.get(tag)
            if found is None:
                self.api.create_tag(self.repo, tag=tag, revision=commit, exist_ok=False)
            elif found != commit:
                raise HubError(f"`tag` must be new, but {tag!r} names the commit {found[:12]}.")

        retry_while_busy(attempt, what=f"tag {tag} on {self.repo}")

    def _url(self, commit: str) -> str:
        return f"{self.api.endpoint}/{self.repo}/commit/{commit}"
