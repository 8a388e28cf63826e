"""hf_qrnn.data.reading: tables without names of columns, and columns of languages."""

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from hf_qrnn.data.reading import DataOptions, TextPair, load_translation_data, read_pairs_file


def write(path: Path, content: str) -> str:
    """Write text, packed as the suffix says."""
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content.encode()))
    return str(path)


def sentence(caught: pytest.ExceptionInfo[Exception]) -> str:
    """The message, which must be one sentence on one line."""
    text = str(caught.value)
    assert "\n" not in text, text
    assert text.endswith("."), text
    return text


# ------------------------------------------------------------------ tables without names


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.xz", "a.csv", "a.csv.gz"])
def test_table_without_names_is_source_then_target(tmp_path: Path, name: str) -> None:
    cut = "\t" if ".tsv" in name else ","
    rows = [("chien", "\u0283 j \u025b\u0303"), ("source", "target")]
    path = write(tmp_path / name, "".join(f"{a}{cut}{b}\n" for a, b in rows))
    expected = [TextPair(*row) for row in rows]
    assert read_pairs_file(path) == expected
    # Without a name, nothing is taken for one.
    options = {"train_file": path, "valid_file": path, "test_file": path}
    data = load_translation_data(DataOptions(**options))
    assert (data.train, data.valid, data.test) == (expected, expected, expected)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.tsv.txt"])
def test_only_tables_may_be_without_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '{"de": "a", "en": "b"}\n')
    with pytest.raises(ValueError, match="`source_lang` must be the key of a language") as caught:
        read_pairs_file(path)
    sentence(caught)


def test_half_of_the_names_is_a_mistake(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "de\ten\na\tb\n")
    for named, missing in (("source_lang", "target_lang"), ("target_lang", "source_lang")):
        with pytest.raises(ValueError, match=f"`{missing}` must be the key"):
            read_pairs_file(path, **{named: "de"})
    with pytest.raises(ValueError, match=r"line 1 .* must have 2 columns .* but has 3"):
        read_pairs_file(write(tmp_path / "b.tsv", "a\tb\tc\n"))


# ------------------------------------------------------------------ languages

TAGGED = [TextPair("chien", "\u0283 j", "fre"), TextPair("dog", "d o g", "eng")]
COLUMNS = {"source_lang": "word", "target_lang": "phones", "language_tag": "lang"}


def tagged_rows(*, nested: bool = False) -> list[dict[str, Any]]:
    rows = [({"word": x.source, "phones": x.target}, x.language) for x in TAGGED]
    return [
        {"translation": texts, "lang": name} if nested else {**texts, "lang": name}
        for texts, name in rows
    ]


def write_tagged(folder: Path, name: str) -> str:
    rows = tagged_rows(nested=name.startswith("nested"))
    path = folder / name
    if ".parquet" in name:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    if ".jsonl" in name:
        return write(path, "".join(json.dumps(row) + "\n" for row in rows))
    cut = "\t" if ".tsv" in name else ","
    lines = [["lang", "word", "x", "phones"]]
    lines += [[row["lang"], row["word"], "", row["phones"]] for row in rows]
    return write(path, "".join(cut.join(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    "name", ["a.tsv", "a.tsv.xz", "a.csv", "a.jsonl", "nested.jsonl.gz", "a.parquet"]
)
def test_language_of_each_pair_is_read(tmp_path: Path, name: str) -> None:
    path = write_tagged(tmp_path, name)
    assert read_pairs_file(path, **COLUMNS) == TAGGED
    # Without it, the pairs are what they were.
    named = {k: v for k, v in COLUMNS.items() if k != "language_tag"}
    assert read_pairs_file(path, **named) == [TextPair(x.source, x.target) for x in TAGGED]


def test_data_set_has_languages_read_or_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("train", "validation"):
        write(folder / f"{name}.jsonl", "".join(json.dumps(x) + "\n" for x in tagged_rows()))
    for streaming in (False, True):
        options = DataOptions(dataset_name=str(folder), streaming=streaming, **COLUMNS)
        data = load_translation_data(options)
        assert data.train == data.valid == TAGGED
        if data.stream is not None:
            assert list(data.stream) == TAGGED


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.tsv", "word\tphones\tlang\na\tb\tfre\na\tb\t\n", ["'lang' in line 3", "but is ''"]),
        ("a.csv", "word,phones,lang\na,b,old french\n", ["'lang' in line 2", "'old french'"]),
        ("a.tsv", "a\tb\n", ["the first line", "'word', 'phones', 'lang'", "has 'a', 'b'"]),
        ("a.tsv", "word\tphones\na\tb\n", ["the first line", "has 'word', 'phones'"]),
        ("a.tsv", "", ["the first line", "has nothing"]),
        ("a.jsonl", '{"word": "a", "phones": "b"}\n', ["line 1", "the key 'lang'"]),
        ("a.jsonl", '{"word": "a", "phones": "b", "lang": null}\n', ["line 1", "is None"]),
        ("a.jsonl", '{"word": "a", "phones": "b", "lang": "s"}\n', ["line 1", "but is 's'"]),
    ],
)
def test_missing_language_names_file_and_line(
    tmp_path: Path, name: str, content: str, parts: list[str]
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=re.escape(path)) as caught:
        read_pairs_file(path, **COLUMNS)
    for part in parts:
        assert part in sentence(caught)


def test_language_needs_a_file_that_has_one(tmp_path: Path) -> None:
    source, target = (write(tmp_path / f"train.{side}", "a\n") for side in ("de", "en"))
    path = write_tagged(tmp_path, "a.tsv")
    two = {"train_source": source, "train_target": target, "valid_file": path}
    with pytest.raises(ValueError, match="`language_tag` must be left out when `train_source`"):
        load_translation_data(DataOptions(**two, **COLUMNS))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`source_lang` must be a column .* with `language_tag`"):
        read_pairs_file(path, language_tag="lang")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize("wrong", [{"source_lang": "ed"}, {"target_lang": "ed"}], ids=str)
def test_one_name_that_is_not_there_swaps_no_columns(
    tmp_path: Path, name: str, wrong: dict[str, str]
) -> None:
    cut = "\t" if name == "a.tsv" else ","
    path = write(tmp_path / name, f"en{cut}de\na dog{cut}ein Hund\n")
    named = {"source_lang": "de", "target_lang": "en", **wrong}
    with pytest.raises(ValueError, match=r"the first line of .* must name the columns") as caught:
        read_pairs_file(path, **named)
    sentence(caught)
    assert read_pairs_file(path, source_lang="de", target_lang="en") == [
        TextPair("ein Hund", "a dog")
    ]
    # Of a table without names both are absent, and its first line is a pair.
    pair = TextPair("en", "de")
    assert read_pairs_file(path, source_lang="fr", target_lang="it")[0] == pair
