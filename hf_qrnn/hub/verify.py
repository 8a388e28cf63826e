"""The check that a pushed model is the one on the Hub: every byte, every Auto class, its logits.

A push stores inputs, logits and the hashes of the model's files in `verification.safetensors`;
`verify` downloads the repository into a fresh cache, compares every file with the hash the Hub
lists and the model's files with the hashes they were pushed with, and loads the model in fresh
processes with and without this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_qrnn.data.hub_replies import first_sentence, one_line, split_revision
from hf_qrnn.data.json_files import read_json
from hf_qrnn.model.backends_qrnn import use_backend

from .client import HubError, commit_of, files_of, has_hash, retry_while_busy
from .files import VERIFICATION_FILE, kind_of

_LOADER = Path(__file__).with_name("load_check.py")
_LENGTHS = (13, 6)  # Tokens of the two texts: padding is part of what is verified.
_TARGET_LENGTH = 5
_SEED = 1611
# float32 sums in another order, as another processor takes it, differ by some 1e-6 of the largest.
TOLERANCE = 1e-4
# Taken from the process that runs the repository's code.
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
# Each would lead that process past the fresh cache, to files of this machine.
_CACHES = (
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH", "HF_ASSETS_CACHE",
)  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class VerifyResult:
    """The result of a `verify` that found all right.

    Attributes:
        commit: The commit that the revision named.
        num_files: Files whose hashes were compared.
        has_hashes: The push kept the hashes of the model's files, and they are the same.
    """

    commit: str
    num_files: int
    has_hashes: bool


@dataclass(frozen=True)
class _Record:
    """The record of a push: the head, texts for the tokenizer, and hashes by file name, or None."""

    auto_class: str
    texts: list[str]
    files: dict[str, str] | None


def write_verification(folder: Path) -> None:
    """Write inputs, this machine's logits and the hashes of the model in `folder` into it.

    One thread, float32 and the definition of pooling in torch, so that the same folder gives the
    same file.

    Raises:
        ValueError: If the model does not load, or has no logits.
    """
    auto = auto_class_of(read_json(folder / "config.json"))
    if auto == "AutoModel":
        raise ValueError("`MODEL` must be a model with a head, but has no logits to compare.")
    # More threads add up in another order: the same push would make another file.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, tokenizer = _loaded(folder, auto)
        texts = _texts(tokenizer)
        encoded = tokenizer(texts, padding=True, return_tensors="pt", return_attention_mask=True)
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        if auto == "AutoModelForSeq2SeqLM":
            start = torch.full((len(texts), 1), model.config.decoder_start_token_id)
            # Any tokens do for a target, and these are there and in the vocabulary.
            given = inputs["input_ids"][:, :_TARGET_LENGTH]
            inputs["decoder_input_ids"] = torch.cat([start, given], 1)
        with torch.no_grad(), use_backend("torch"):
            output = model.eval()(**inputs)
    finally:
        torch.set_num_threads(threads)
    tensors = {**inputs, "logits": output.logits}
    described = json.dumps({"auto_class": auto, "texts": texts, "files": _hashes(folder)})
    # One entry: safetensors writes several in no fixed order.
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / VERIFICATION_FILE,
        metadata={"check": described},
    )


def _loaded(folder: Path, auto: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the model with all its weights, and its tokenizer."""
    _check_weights(folder)
    options: dict[str, Any] = {"trust_remote_code": False}
    try:
        model, report = getattr(transformers, auto).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # what a config asks for can go wrong in any way
        raise ValueError(f"`MODEL` must load, but: {_reason(error)}") from error
    # transformers draws missing weights at random and only warns.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"`MODEL` must hold all its weights, but lacks {len(missing)}, {missing[0]!r} for one."
        )
    if auto == "AutoModelForSeq2SeqLM" and model.config.decoder_start_token_id is None:
        raise ValueError("`decoder_start_token_id` must be given to translate, but is None.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # `tokenizers` raises plain Exception for a broken file
        raise ValueError(f"The tokenizer of `MODEL` must load, but: {_reason(error)}") from error
    if tokenizer.pad_token is None:
        raise ValueError("`tokenizer_config.json` must name a padding token, but names none.")
    return model, tokenizer


def _check_weights(folder: Path) -> None:
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            # The header alone: it tells of a file that was cut short, in a moment.
            with safe_open(path, framework="pt") as file:
                file.keys()
        except SafetensorError as error:
            raise ValueError(
                f"`{path.name}` must be whole, but is damaged: {first_sentence(error)}"
            ) from error


def _reason(error: Exception) -> str:
    """Return the first sentence of an error; with its kind where that alone says what it is."""
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return kind + first_sentence(error)


def _hashes(folder: Path) -> dict[str, str]:
    """Compute SHA-256 of the files that make up the model, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if kind_of(name) is not None and path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                # In blocks: weights may be larger than the memory.
                while block := file.read(1 << 20):
                    digest.update(block)
            found[name] = digest.hexdigest()
    return found


def auto_class_of(config: dict[str, Any]) -> str:
    """Name of the Auto class that loads the architecture a config names.

    Raises:
        ValueError: If `architectures` is not one class of `auto_map`.
    """
    architecture = (config.get("architectures") or [None])[0]
    for auto, entry in config["auto_map"].items():
        if entry.split(".")[-1] == architecture:
            return str(auto)
    raise ValueError(f"`architectures` must be a class of `auto_map`, but is {architecture!r}.")


def _texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Draw two texts of the tokenizer's own tokens with a fixed seed."""
    # Special tokens in a text may be read as text, or dropped when decoded.
    special = set(tokenizer.all_special_ids)
    ids = [index for index in range(len(tokenizer)) if index not in special]
    generator = torch.Generator().manual_seed(_SEED)
    texts = []
    for length in _LENGTHS:
        drawn = torch.randint(len(ids), (length,), generator=generator).tolist()
        text = tokenizer.decode([ids[index] for index in drawn], clean_up_tokenization_spaces=False)
        texts.append(str(text))
    return texts


def verify(name: str, *, report: Callable[[str], None] = lambda _: None) -> VerifyResult:
    """Verify a model on the Hub. This runs the code that lies in the repository.

    That code runs in a process of its own, without the token and with nothing but a fresh cache.

    Args:
        name: "user/name" or "user/name@revision".
        report: Called with a sentence for every step that went well.

    Raises:
        HubError: If the Hub cannot be reached, or anything is not as it was pushed.
    """
    repo, revision = split_revision(name)
    api = HfApi()
    with TemporaryDirectory() as folder:
        cache = Path(folder)
        commit = retry_while_busy(
            lambda: commit_of(api, repo, revision), what=f"download of {name}"
        )
        snapshot, count = _download(api, repo, commit, cache, what=f"download of {name}")
        report(f"{count} files of commit {commit[:12]} have the hashes the Hub lists")
        try:
            autos, record = _stored(snapshot)
        except ValueError as error:
            raise HubError(str(error)) from error
        # Not raised yet: an error of loading says more, and is told what changed as well.
        changed = _changed(snapshot, record)
        # The package's code and the code that lies in the repository are two programs.
        for with_package in (True, False):
            try:
                found = _load(
                    repo, commit, snapshot, cache, autos, record, with_package=with_package
                )
                difference = _check_loaded(found, with_package=with_package)
            except HubError as error:
                since = f" Since the push there changed: {changed}." if changed else ""
                raise HubError(f"{error}{since}") from error
            place = "with" if with_package else "without"
            report(
                f"{', '.join(found['loaded'])} load {place} the package; the largest difference "
                f"of a logit is {difference:.1e}"
            )
    if changed:
        raise HubError(
            f"{repo} at commit {commit[:12]} must be what was pushed, but a later commit changed: "
            f"{changed}."
        )
    return VerifyResult(commit, count, record.files is not None)


def _download(api: HfApi, repo: str, commit: str, cache: Path, *, what: str) -> tuple[Path, int]:
    """Download a commit into a fresh cache; check its hashes and count its files."""
    path = retry_while_busy(
        lambda: snapshot_download(
            repo, revision=commit, cache_dir=cache / "hub", endpoint=api.endpoint
        ),
        what=what,
    )
    snapshot = Path(path)
    for attempt in (1, 2):
        entries = retry_while_busy(lambda: files_of(api, repo, commit), what=what)
        try:
            _check_files(snapshot, entries)
        except HubError:
            # What was altered may be the listing: two must agree before the files are blamed.
            if attempt == 2:
                raise
        else:
            break
    return snapshot, len(entries)


def _check_files(snapshot: Path, entries: list[RepoFile]) -> None:
    listed = {entry.path: entry for entry in entries}
    for path in sorted(snapshot.rglob("*")):
        name = path.relative_to(snapshot).as_posix()
        if path.is_file() and name not in listed:
            raise HubError(f"{name!r} must be in the Hub's listing, but is not.")
    for name, entry in listed.items():
        path = snapshot / name
        if not path.is_file():
            raise HubError(f"{name!r} must be there, but the download lacks it.")
        if not has_hash(path, entry):
            raise HubError(
                f"{name!r} must have the hash that the Hub lists, but what was downloaded "
                "has another: it was altered on the way or on the Hub."
            )
        # transformers takes safetensors first, but other programs would open it.
        if path.suffix in _PICKLES:
            raise HubError(f"{name!r} must not be there: a pickle can run any code.")
    if VERIFICATION_FILE not in listed:
        raise HubError(
            f"{VERIFICATION_FILE!r} must be there to compare logits with, but is not: "
            "`hf-qrnn push` writes it."
        )


def _stored(snapshot: Path) -> tuple[list[str], _Record]:
    """Read the names of the Auto classes that must load, and the record of the push.

    Raises:
        ValueError: If a file that says so is missing or damaged.
    """
    if not (snapshot / "config.json").is_file():
        raise ValueError("`config.json` must be there, but is not.")
    auto_map = read_json(snapshot / "config.json").get("auto_map")
    if not (isinstance(auto_map, dict) and auto_map):
        raise ValueError(
            "`config.json` must have an `auto_map`, by which Auto classes find the code, but has "
            "none: `hf-qrnn push` sends one."
        )
    # AutoConfig is not listed: every other class loads the config on its way.
    autos = sorted(auto for auto in auto_map if auto != "AutoConfig")
    record = _read_record(snapshot / VERIFICATION_FILE)
    if record.auto_class not in autos:
        raise ValueError(
            f"`config.json` must have {record.auto_class!r}, whose logits are stored, in its "
            "`auto_map`, but has not."
        )
    return autos, record


def _read_record(path: Path) -> _Record:
    rule = f"`{path.name}` must be as `hf-qrnn push` writes it, but"
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
        check = json.loads(metadata.get("check", "null"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{rule} is damaged: {first_sentence(error)}") from error
    lacking = sorted({"input_ids", "attention_mask", "logits"} - names)
    if lacking:
        raise ValueError(f"{rule} lacks {lacking[0]!r}.")
    check = check if isinstance(check, dict) else {}
    auto, texts, files = check.get("auto_class"), check.get("texts") or [], check.get("files")
    # Written by anyone who may write to the repository: nothing in it is taken on trust.
    are_texts = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    if not (isinstance(auto, str) and are_texts and isinstance(files, (dict, type(None)))):
        raise ValueError(f"{rule} does not say which class and texts its logits are of.")
    return _Record(auto, texts, files)


def _changed(snapshot: Path, record: _Record) -> str:
    """Name the files that differ from the push, as "code (modeling_qrnn.py)"; "" if none does."""
    # Releases before hashes were stored made pushes without any.
    if record.files is None:
        return ""
    now = _hashes(snapshot)
    differing: dict[str, list[str]] = {}
    for name in sorted(now.keys() | record.files.keys()):
        if now.get(name) != record.files.get(name):
            differing.setdefault(kind_of(name) or "other", []).append(name)
    return ", ".join(f"{kind} ({', '.join(names)})" for kind, names in differing.items())


def _load(
    repo: str,
    commit: str,
    snapshot: Path,
    cache: Path,
    autos: list[str],
    record: _Record,
    *,
    with_package: bool,
) -> dict[str, Any]:
    """Load the repository from the fresh cache in a fresh process and return its answer."""
    environment = {k: v for k, v in os.environ.items() if k not in (*_SECRETS, *_CACHES)}
    # A clone that was not installed is found by this; the loader hides it where it must.
    package = str(Path(__file__).parents[2])
    inherited = environment.get("PYTHONPATH")
    environment.update(
        HF_HOME=str(cache),
        HF_HUB_OFFLINE="1",
        HF_QRNN_BACKEND="torch",  # as what is stored; kernels sum in another order
        PYTHONPATH=package if inherited is None else package + os.pathsep + inherited,
    )
    job = {
        "repo": repo, "commit": commit, "with_package": with_package, "autos": autos,
        "file": str(snapshot / VERIFICATION_FILE), "auto_class": record.auto_class,
        "texts": record.texts,
    }  # fmt: skip
    # In the cache as working directory: a module in the user's own must not be imported.
    done = subprocess.run(
        [sys.executable, str(_LOADER)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        cwd=cache,
        check=False,
    )
    place = "with" if with_package else "without"
    if done.returncode != 0:
        # The last line of a traceback is the error.
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise HubError(f"The model must load {place} the package, but: {one_line(lines[-1])}")
    try:
        # The last line: the repository's code may print before.
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise HubError(
            f"The model must load {place} the package, but its process gave no answer."
        ) from error
    return found


def _check_loaded(found: dict[str, Any], *, with_package: bool) -> float:
    """Return the largest difference of a logit, if all is right."""
    place = "with" if with_package else "without"
    # Else the same code would have been tested twice, and the other never.
    if found["is_remote"] is with_package:
        kind = "the package's" if with_package else "the repository's"
        raise HubError(f"The code must be {kind} {place} the package, but is not.")
    if not found["same_ids"]:
        raise HubError(f"The tokenizer must give the stored ids {place} the package, but does not.")
    difference, largest = float(found["difference"]), float(found["largest"])
    # Not `>`: a NaN must not pass.
    if not difference <= TOLERANCE * max(1.0, largest):
        raise HubError(
            f"The logits must be those stored with the push {place} the package, but differ by "
            f"{difference:.2e}, the largest being {largest:.2e}."
        )
    return difference
