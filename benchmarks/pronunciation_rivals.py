"""Programs that pronounce English already, on the words of the benchmark.

- g2p_en 2.1.0 (PyPI): a GRU in NumPy. It was trained on CMUdict, and has seen these words.
- espeak-ng (Debian): rules and a dictionary, called as a program; its IPA becomes ARPAbet by `MAP`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

RIVALS = ("g2p_en", "espeak")


@dataclass(frozen=True)
class Answer:
    """The pronunciations of a rival.

    Attributes:
        phones: ARPAbet with stress digits, one for each word; "" where there is none.
        seconds: The CPU time for all of them: a machine that others use slows no clock of it.
        about: Name and version.
        notes: What a reader must know.
        unmapped: Words with a symbol that ARPAbet does not have, which count as wrong.
    """

    phones: list[str]
    seconds: float
    about: str
    notes: str
    unmapped: list[str] = field(default_factory=list)


class MissingRivalError(Exception):
    """A rival that is not on this machine; the text says how to get it."""


def ask(name: str, words: Sequence[str], *, espeak: str = "espeak-ng") -> Answer:
    """Let a rival pronounce `words`.

    Raises:
        MissingRivalError: If it is not there.
    """
    return ask_g2p_en(words) if name == "g2p_en" else ask_espeak(words, espeak)


# ------------------------------------------------------------------ g2p_en


def ask_g2p_en(words: Sequence[str]) -> Answer:
    """Let the network of g2p_en pronounce `words`, one after the other, as it always does.

    Its dictionary, which has the answers, is not asked.

    Raises:
        MissingRivalError: If the package is not there.
    """
    predict = _load_g2p_en()
    started = time.process_time()
    phones = [" ".join(predict(word)) for word in words]
    seconds = time.process_time() - started
    notes = "trained on CMUdict, these words among them; its network alone, without its dictionary"
    return Answer(phones, seconds, f"g2p_en {metadata.version('g2p_en')}", notes)


def _load_g2p_en() -> Any:
    """Load the method that runs the network, without what the package downloads on import."""
    found = importlib.util.find_spec("g2p_en")
    if found is None or found.origin is None:
        raise MissingRivalError("g2p_en is not installed: pip install g2p_en==2.1.0.")
    folder = Path(found.origin).parent
    # The package's module asks nltk for data when it is imported; the network needs none of it.
    stand_ins = _stand_ins()
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        spec = importlib.util.spec_from_file_location("g2p_en.g2p", folder / "g2p.py")
        assert spec is not None, "a file of Python has a specification"
        assert spec.loader is not None, "and a loader"
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            # Its regular expressions are of an older Python.
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
    finally:
        for name, old in before.items():
            if old is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old
    # For whole sentences too, and read from a file that would stay open.
    vars(module)["construct_homograph_dictionary"] = dict
    network = module.G2p()
    network.variables.close()  # its weights are read, but the file would stay open
    return network.predict


def _stand_ins() -> dict[str, ModuleType]:
    """Make the modules that g2p_en's module imports for whole sentences only."""

    def module(name: str, **content: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(content)
        return made

    class NoDictionary:
        """A dictionary without words."""

        @staticmethod
        def dict() -> dict[str, Any]:
            """Return no words."""
            return {}

    class NoTokenizer:
        """A tokenizer that nobody calls."""

        tokenize = staticmethod(str.split)

    class Data:
        """A store that has everything that is asked for."""

        @staticmethod
        def find(name: str) -> str:
            """Return the name."""
            return name

    corpus = module("nltk.corpus", cmudict=NoDictionary)
    tokenize = module("nltk.tokenize", TweetTokenizer=NoTokenizer)
    return {
        "nltk": module("nltk", pos_tag=list, corpus=corpus, tokenize=tokenize, data=Data),
        "nltk.corpus": corpus,
        "nltk.tokenize": tokenize,
        "g2p_en": module("g2p_en", __path__=[]),
        "g2p_en.expand": module("g2p_en.expand", normalize_numbers=str),
    }


# ------------------------------------------------------------------ espeak-ng

MAP = {
    # Vowels; * is the place of the stress digit.
    "ɑː": "AA*", "ɑ": "AA*", "æ": "AE*", "ʌ": "AH*", "ə": "AH*", "ɐ": "AH*", "ɔː": "AO*",
    "ɔ": "AO*", "oː": "AO*", "aʊ": "AW*", "aɪ": "AY*", "ɛ": "EH*", "ɜː": "ER*", "ɚ": "ER*",
    "eɪ": "EY*", "ɪ": "IH*", "ᵻ": "IH*", "iː": "IY*", "iːː": "IY*", "i": "IY*", "oʊ": "OW*",
    "ɔɪ": "OY*", "ʊ": "UH*", "uː": "UW*", "u": "UW*",
    # Vowels with what follows them.
    "ɑːɹ": "AA* R", "ɔːɹ": "AO* R", "oːɹ": "AO* R", "ʊɹ": "UH* R", "ɛɹ": "EH* R", "ɪɹ": "IH* R",
    "iə": "IY* AH0", "aɪə": "AY* AH0", "aɪɚ": "AY* ER0", "əl": "AH* L", "n̩": "AH* N",
    # Consonants. The flap is a T between vowels, the stop of the glottis a T before N.
    "b": "B", "tʃ": "CH", "d": "D", "ð": "DH", "f": "F", "ɡ": "G", "h": "HH", "dʒ": "JH", "k": "K",
    "l": "L", "m": "M", "n": "N", "ŋ": "NG", "p": "P", "ɹ": "R", "s": "S", "ʃ": "SH", "t": "T",
    "θ": "TH", "v": "V", "w": "W", "j": "Y", "z": "Z", "ʒ": "ZH", "ɾ": "T", "ʔ": "T",
}  # fmt: skip
"""ARPAbet of each symbol of espeak-ng's American voice."""
_STRESS_MARKS = {"ˈ": "1", "ˌ": "2"}
# espeak-ng writes these before an R of their own, which CMUdict does not write again.
_RHOTIC = re.compile(r"((?:ER[012])|(?:[A-Z]{2}[012] R)) R(?= [A-Z]{2}[012])")


def to_arpabet(symbols: Sequence[str]) -> str | None:
    """Write espeak-ng's phonemes in ARPAbet, as CMUdict would; None where a symbol has no place.

    An IH right before a vowel is IY in CMUdict ("radio"), and ER before R and a vowel is ER alone
    ("hurry").
    """
    phones: list[str] = []
    for symbol in symbols:
        digit = next((_STRESS_MARKS[x] for x in symbol if x in _STRESS_MARKS), "0")
        bare = "".join(x for x in symbol if x not in _STRESS_MARKS)
        if bare == "":  # a break between two vowels
            continue
        if bare not in MAP:
            return None
        phones += MAP[bare].replace("*", digit).split()
    for index, (phone, following) in enumerate(pairwise(phones)):
        if phone.startswith("IH") and following[-1].isdigit():
            phones[index] = f"IY{phone[-1]}"
    return _RHOTIC.sub(r"\1", " ".join(phones))


def ask_espeak(words: Sequence[str], program: str) -> Answer:
    """Let espeak-ng pronounce `words`, all in one process, a word a line.

    Raises:
        MissingRivalError: If the program is not there or does not run.
    """
    if shutil.which(program) is None:
        raise MissingRivalError(f"there is no program '{program}': apt-get install espeak-ng.")
    command = [program, "-q", "-v", "en-us", "--ipa", "--sep=_"]
    started = _children_seconds()
    done = _run(command, "".join(f"{word}\n" for word in words))
    seconds = max(_children_seconds() - started, 0.01)  # the clock's own step
    lines = done.splitlines()
    if len(lines) != len(words):
        raise MissingRivalError(f"'{program}' gave {len(lines)} lines for {len(words)} words.")
    found = [to_arpabet(re.split(r"[_ ]", line.strip())) for line in lines]
    unmapped = [word for word, phones in zip(words, found, strict=True) if phones is None]
    version = re.search(r"(\d+\.\d[\w.-]*)", _run([program, "--version"], ""))
    notes = f"its IPA mapped to ARPAbet; {len(unmapped)} words with other symbols count as wrong"
    about = f"espeak-ng {version[1] if version else ''}".strip()
    return Answer([phones or "" for phones in found], seconds, about, notes, unmapped)


def _children_seconds() -> float:
    """Return the CPU time of the programs that this one has run."""
    found = os.times()
    return found.children_user + found.children_system


def _run(command: Sequence[str], text: str) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().split("\n")[-1]
        raise MissingRivalError(f"'{command[0]}' does not run: {said}") from error
    return done.stdout
