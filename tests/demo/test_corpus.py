"""The embedded corpus: its sentences, its words and its splits."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

import hf_qrnn
from demo.corpus import corpus
from demo.corpus import lexicon as corpus_lexicon
from demo.corpus import verbs as corpus_verbs
from demo.corpus.corpus import CorpusSplits, SentencePair, make_corpus
from demo.corpus.grammar import german_noun
from demo.corpus.lexicon import Adjective, Noun
from demo.corpus.sentences import Derivation, Speaker, is_reserved

NOUNS: dict[str, Noun] = {
    noun.german: noun
    for table in vars(corpus_lexicon).values()
    if isinstance(table, tuple) and table and isinstance(table[0], Noun)
    for noun in table
}
ADJECTIVES: dict[str, Adjective] = {
    adjective.german: adjective
    for table in vars(corpus_lexicon).values()
    if isinstance(table, tuple) and table and isinstance(table[0], Adjective)
    for adjective in table
}
VERBS = {corpus_verbs.lemma(verb) for verb in corpus_verbs.ALL_VERBS}


@pytest.fixture(scope="module")
def splits() -> CorpusSplits:
    return make_corpus(num_train=12_000, num_test=400, num_held_out=400, seed=3)


@pytest.fixture(scope="module")
def drawn() -> list[Derivation]:
    return list(itertools.islice(corpus.derivations(5), 20_000))


def test_speaker_says_whole_sentences() -> None:
    """All kinds of sentences appear, with capital and stop, subordinate clauses on both sides."""
    speaker = Speaker(1)
    pairs = [speaker.speak() for _ in range(5000)]
    for pattern in (r", dass .*\.$", r", weil .*\.$", r"^Wenn .*, "):
        assert any(re.search(pattern, pair.german) for pair in pairs), pattern
    shape = re.compile(r"[A-ZÄÖÜ][^.]*[.]")
    assert all(shape.fullmatch(pair.german) and shape.fullmatch(pair.english) for pair in pairs)
    assert all(pair.german[-1] == pair.english[-1] for pair in pairs)


# The lexicon


def test_lemmas_are_many(drawn: list[Derivation]) -> None:
    german = {lemma for item in drawn for lemma in item.lemmas}
    assert len(german) >= 390
    assert {"Lehrer", "anrufen", "teuer", "Februar", "weil"} <= german


def test_lexicon_has_one_english_word_per_german_word() -> None:
    """A lemma that stands in two tables has the same English in both."""
    english: dict[str, set[str]] = {}
    lemmas = 0
    for table in vars(corpus_lexicon).values():
        for entry in table if isinstance(table, tuple) else ():
            if isinstance(entry, Noun | Adjective):
                english.setdefault(entry.german, set()).add(entry.english)
                lemmas += 1
    assert {german: words for german, words in english.items() if len(words) > 1} == {}
    assert 100 < len(english) < lemmas  # some do stand in two tables


def test_every_open_lemma_is_frequent(drawn: list[Derivation]) -> None:
    """Over 20,000 sentences each noun, verb, adjective and name comes at least 30 times."""
    counts = Counter(lemma for item in drawn for lemma in set(item.lemmas))
    fixed = {"sein", "kosten"}
    expected = {*NOUNS, *ADJECTIVES, *corpus_lexicon.NAMES, *(VERBS - fixed)}
    assert min((counts[lemma], lemma) for lemma in expected) >= (30, "")


# The corpus


def test_german_has_one_translation() -> None:
    """Without the filter for distinct sentences: 40,000 draws, no German with two English texts."""
    speaker = Speaker(11)
    english: dict[str, str] = {}
    repeated = 0
    for _ in range(40_000):
        item = speaker.speak()
        repeated += item.german in english
        assert english.setdefault(item.german, item.english) == item.english
    assert repeated > 50


def test_make_corpus_sizes_and_lengths(splits: CorpusSplits) -> None:
    assert [len(splits.train), len(splits.test), len(splits.held_out)] == [12_000, 400, 400]
    for texts in ([p.source for p in splits.train], [p.target for p in splits.train]):
        assert 40 <= sum(map(len, texts)) / len(texts) <= 50
        assert max(map(len, texts)) <= 100


def test_make_corpus_splits_are_disjoint(splits: CorpusSplits) -> None:
    pairs = [*splits.train, *splits.test, *splits.held_out]
    assert len({pair.source for pair in pairs}) == len(pairs)
    assert len({pair.target for pair in pairs}) == len(pairs)


def test_make_corpus_is_deterministic() -> None:
    """Another process with another hash seed makes the same corpus, another seed another one.

    That process imports the corpus without the rest of the package: it needs no torch.
    """
    code = (
        "import hashlib, sys, types; package = types.ModuleType('hf_qrnn');"
        f"package.__path__ = {list(hf_qrnn.__path__)!r}; sys.modules['hf_qrnn'] = package;"
        "from demo.corpus.corpus import make_corpus;"
        "c = make_corpus(num_train=500, num_test=20, num_held_out=10, seed=4);"
        "print(hashlib.sha256(repr(c).encode()).hexdigest(), 'torch' in sys.modules)"
    )
    made = make_corpus(num_train=500, num_test=20, num_held_out=10, seed=4)
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.split() == [hashlib.sha256(repr(made).encode()).hexdigest(), "False"]
    assert made != make_corpus(num_train=500, num_test=20, num_held_out=10, seed=5)


def _forms(noun: Noun) -> set[str]:
    return {
        german_noun(noun, case, plural=plural)
        for case in ("nom", "acc", "dat")
        for plural in (False, True)
    }


def _adjective_noun_pairs(pairs: list[SentencePair]) -> Iterator[tuple[str, str, str]]:
    """Find adjective and noun side by side in the text alone, without the derivation."""
    nouns = {form: noun.german for noun in NOUNS.values() for form in _forms(noun)}
    adjectives = {
        (word.stem or word.german) + ending: word.german
        for word in ADJECTIVES.values()
        for ending in ("e", "er", "es", "en", "em")
    }
    for pair in pairs:
        words = re.findall(r"[^ ,.?]+", pair.source)
        for left, right in itertools.pairwise([words[0].lower(), *words[1:]]):
            if left in adjectives and right in nouns:
                yield "adjective", adjectives[left], nouns[right]


def test_make_corpus_keeps_combinations_from_train(splits: CorpusSplits) -> None:
    """Read from the text: no reserved adjective and noun in train or test, many in held_out."""
    seen = list(_adjective_noun_pairs(splits.train + splits.test))
    assert len(seen) > 1000
    assert not any(is_reserved(combination) for combination in seen)
    assert sum(map(is_reserved, _adjective_noun_pairs(splits.held_out))) > 80


def test_make_corpus_holds_out_by_derivation(splits: CorpusSplits) -> None:
    """Read from the derivation: adjectives and verbs, every sentence of every split."""
    derivation = {item.german: item for item in itertools.islice(corpus.derivations(3), 20_000)}
    held_out = [derivation[pair.source] for pair in splits.held_out]
    assert all(any(is_reserved(part) for part in item.combinations) for item in held_out)
    train = [derivation[pair.source] for pair in (*splits.train, *splits.test)]
    known = {part for item in train for part in item.combinations}
    assert not any(is_reserved(part) for part in known)
    kinds = {part[0] for item in held_out for part in item.combinations if is_reserved(part)}
    assert kinds == {"adjective", "verb"}
    assert ("verb", "kaufen", "Tisch") in known


def test_derivation_names_its_combinations(drawn: list[Derivation]) -> None:
    """Check that what is recorded is said, and that nothing belongs to another sentence."""
    for item in drawn[:3000]:
        for kind, word, noun in item.combinations:
            assert any(form in item.german for form in _forms(NOUNS[noun]))
            if kind == "adjective":
                stem = ADJECTIVES[word].stem or word
                assert stem in item.german.lower()


def test_reserved_combinations_are_one_in_ten() -> None:
    pairs = [("adjective", word, noun) for word in ADJECTIVES for noun in NOUNS]
    assert 0.08 < sum(map(is_reserved, pairs)) / len(pairs) < 0.12


def test_held_out_words_occur_in_train(splits: CorpusSplits) -> None:
    for side in ("source", "target"):
        known = {
            word for pair in splits.train for word in re.findall(r"[^ ,.?]+", getattr(pair, side))
        }
        for pair in splits.held_out:
            assert known.issuperset(re.findall(r"[^ ,.?]+", getattr(pair, side)))


@pytest.mark.parametrize("name", ["num_train", "num_test", "num_held_out"])
def test_make_corpus_rejects_sizes(name: str) -> None:
    sizes = {"num_train": 10, "num_test": 1, "num_held_out": 1, name: 0}
    with pytest.raises(ValueError, match=rf"`{name}` must be positive, but is 0\."):
        make_corpus(**sizes)


def test_make_corpus_says_when_words_are_missing() -> None:
    with pytest.raises(ValueError, match=r"`num_held_out` must be at most .* Train on more"):
        make_corpus(num_train=2, num_test=1, num_held_out=40)


def test_make_corpus_says_when_sentences_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [item for item in itertools.islice(corpus.derivations(0), 100) if not item.reserved]
    monkeypatch.setattr(corpus, "derivations", lambda seed: iter(few[:50]))
    with pytest.raises(ValueError, match=r"`num_train` must be at most 40, but is 41\."):
        make_corpus(num_train=41, num_test=10, num_held_out=1)
