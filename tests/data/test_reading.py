"""hf_qrnn.data.reading: every source of pairs gives the same pairs, every fault one sentence."""

import csv
import gzip
import io
import json
import lzma
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_qrnn.data.reading import (
    DataOptions,
    FilterReport,
    TextPair,
    filter_pairs,
    load_translation_data,
    read_lines,
    read_pairs_file,
    read_parallel,
)

PAIRS = [
    TextPair("Ein Hund.", "A dog."),
    TextPair('"Ja" sagt er', '"Yes, he says'),
    TextPair("Zeile\u2028eins\x85\x0c\x1c", "line\u2029one"),
    TextPair("  Gr\u00fc\u00dfe \U0001f600 ", "don 't"),
    TextPair("", "empty side"),
]
LANGUAGES: dict[str, Any] = {"source_lang": "de", "target_lang": "en"}


def write(path: Path, content: str | bytes) -> str:
    """Writes text or bytes, packed as the suffix says."""
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return str(path)


def json_lines(pairs: list[TextPair] = PAIRS, nested: bool = True) -> str:
    rows = [{"de": pair.source, "en": pair.target} for pair in pairs]
    return "".join(json.dumps({"translation": row} if nested else row) + "\n" for row in rows)


def write_parallel(
    folder: Path, name: str, pairs: list[TextPair], suffix: str = ""
) -> tuple[str, str]:
    source = write(folder / f"{name}.de{suffix}", "".join(f"{p.source}\n" for p in pairs))
    target = write(folder / f"{name}.en{suffix}", "".join(f"{p.target}\n" for p in pairs))
    return source, target


def sentence(caught: pytest.ExceptionInfo[Exception]) -> str:
    """The message, which must be one sentence on one line."""
    text = str(caught.value)
    assert "\n" not in text, text
    assert text.endswith("."), text
    return text


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The `datasets` library with its cache in a folder of the test."""
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    yield library
    library.enable_progress_bars()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, datasets: ModuleType) -> None:
    """As HF_HUB_OFFLINE=1 at the start of the process."""
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_read_parallel_keeps_lines_aligned(tmp_path: Path, suffix: str) -> None:
    assert read_parallel(*write_parallel(tmp_path, "train", PAIRS, suffix)) == PAIRS


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\n\n", ["a", ""]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\rb\n\rc\r\r\n", ["a\rb", "\rc\r"]),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n", ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"]),
        ("\ufeffa\n\ufeffb\n", ["a", "\ufeffb"]),
        (" a \n\t\n", [" a ", "\t"]),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".gz", ".xz"])
def test_read_lines_ends_lines_at_newlines_only(
    tmp_path: Path, suffix: str, content: str, lines: list[str]
) -> None:
    assert read_lines(write(tmp_path / f"file{suffix}", content)) == lines


@settings(max_examples=80, deadline=None)
@given(lines=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))))
def test_read_lines_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.txt"
    path.write_bytes("".join(f"x{line}x\n" for line in lines).encode())
    assert read_lines(path) == [f"x{line}x" for line in lines]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_invalid_utf8_names_file_and_line(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"bad.de{suffix}", b"gut\n\xc3\xbc\nschl\xfccht\n")
    with pytest.raises(ValueError, match="line 3") as caught:
        read_lines(path)
    assert path in sentence(caught)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("fault", ["not_packed", "cut", "flipped"])
def test_broken_archives_name_the_file(tmp_path: Path, suffix: str, fault: str) -> None:
    path = tmp_path / f"file{suffix}"
    write(path, "a\n" * 1000)
    packed = path.read_bytes()
    broken = {
        "not_packed": b"plain text",
        "cut": packed[: len(packed) // 2],
        "flipped": packed[:20] + bytes([packed[20] ^ 255]) + packed[21:],
    }[fault]
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="must be a complete") as caught:
        read_lines(path)
    assert str(path) in sentence(caught)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_lines, lambda path: read_pairs_file(path, **LANGUAGES)):
        for name in ("no.jsonl", "no.tsv.gz", "no.parquet"):
            with pytest.raises(FileNotFoundError) as caught:
                read(tmp_path / name)
            rule = f"`path` must be an existing file, but is '{tmp_path / name}'."
            assert sentence(caught) == rule
    with pytest.raises(FileNotFoundError, match="`path` must be an existing file, but is"):
        read_lines(tmp_path)


def test_unequal_counts_name_both_counts_and_files(tmp_path: Path) -> None:
    source, target = write_parallel(tmp_path, "train", PAIRS)
    write(tmp_path / "train.en", "one\ntwo\n")
    with pytest.raises(ValueError, match="same number of lines") as caught:
        read_parallel(source, target)
    assert f"'{source}' has 5 and '{target}' has 2" in sentence(caught)


def parquet(path: Path, nested: bool) -> None:
    import pyarrow.parquet

    rows = [json.loads(line) for line in json_lines(nested=nested).split("\n") if line]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("nested", [True, False], ids=["translation", "flat"])
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.xz", "a.JSONL", "a.v2.parquet"]
)
def test_read_pairs_file_reads_the_same_pairs(tmp_path: Path, name: str, nested: bool) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        parquet(path, nested)
    else:
        write(path, json_lines(nested=nested))
    assert read_pairs_file(path, **LANGUAGES) == PAIRS


TSV_BODY = "".join(f"{pair.source}\t{pair.target}\n" for pair in PAIRS)
TSV_FILES = {
    "bare": TSV_BODY,
    "windows": TSV_BODY.replace("\n", "\r\n"),
    "header": "de\ten\n" + TSV_BODY,
    "swapped": "en\tde\n" + "".join(f"{pair.target}\t{pair.source}\n" for pair in PAIRS),
    "more": "id\ten\tx\tde\n" + "".join(f"7\t{p.target}\t\t{p.source}\n" for p in PAIRS),
}


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".tsv.xz"])
@pytest.mark.parametrize("content", TSV_FILES.values(), ids=TSV_FILES.keys())
def test_read_pairs_file_reads_tsv_without_quoting(
    tmp_path: Path, suffix: str, content: str
) -> None:
    assert read_pairs_file(write(tmp_path / f"a{suffix}", content), **LANGUAGES) == PAIRS


CSV_PAIRS = [
    TextPair("Ein Hund, gro\u00df", "A dog, big"),
    TextPair('"Ja", sagt er', 'He says "yes"'),
    TextPair("zwei\nZeilen", "two\r\nlines"),
    TextPair("  Gr\u00fc\u00dfe\u2028\x85 ", "tab\there"),
    TextPair("", "empty side"),
]


def csv_text(rows: Iterable[Iterable[object]], end: str = "\n") -> str:
    """Rows as Python's own writer writes them."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end).writerows(rows)
    return file.getvalue()


CSV_ROWS = [(pair.source, pair.target) for pair in CSV_PAIRS]
CSV_FILES = {
    "bare": csv_text(CSV_ROWS),
    "windows": csv_text(CSV_ROWS, "\r\n"),
    "bom": "\ufeff" + csv_text([("de", "en"), *CSV_ROWS]),
    "header": csv_text([("de", "en"), *CSV_ROWS]),
    "blank_lines": "\n" + csv_text([("de", "en"), *CSV_ROWS], "\n\n"),
    "more": csv_text([("id", "en", "x", "de"), *((7, t, "", s) for s, t in CSV_ROWS)]),
}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.xz", ".CSV"])
@pytest.mark.parametrize("content", CSV_FILES.values(), ids=CSV_FILES.keys())
def test_read_pairs_file_reads_csv(tmp_path: Path, suffix: str, content: str) -> None:
    assert read_pairs_file(write(tmp_path / f"a{suffix}", content), **LANGUAGES) == CSV_PAIRS


def test_a_newline_in_a_field_is_text_in_csv_as_in_json(tmp_path: Path) -> None:
    rows = [{"de": pair.source, "en": pair.target} for pair in CSV_PAIRS]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_pairs_file(path, **LANGUAGES) == CSV_PAIRS
    path = write(tmp_path / "a.csv", CSV_FILES["header"])
    flags = {"train_file": path, "valid_file": path, **LANGUAGES}
    assert load_translation_data(DataOptions(**flags)).train == CSV_PAIRS[:4]
    flags = {"dataset_name": path, "valid_file": path, **LANGUAGES}
    assert load_translation_data(DataOptions(**flags)).valid == CSV_PAIRS


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 2)
    )
)
def test_csv_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(csv_text([("de", "en"), *rows], "\r\n").encode())
    assert read_pairs_file(path, **LANGUAGES) == [TextPair(*row) for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (
            "a.jsonl",
            '{"de": "a", "en": "b"}\n\n{"de": "a", "fr": "b"}\n',
            ["line 3", "'en'", "'fr'"],
        ),
        ("a.jsonl", '{"translation": {"fr": "a"}}\n', ["line 1", "'de'", "'fr'"]),
        ("a.jsonl", "{}\n", ["line 1", "no key"]),
        ("a.jsonl", '{"de": "a", "en": null}\n', ["line 1", "'en'", "must be text", "None"]),
        ("a.jsonl", '{"de": 3, "en": "a"}\n', ["line 1", "'de'", "but is 3"]),
        ("a.jsonl", '{"de": "a\\ud800", "en": "a"}\n', ["line 1", "surrogate"]),
        ("a.jsonl", '["a", "b"]\n', ["line 1", "object", "list"]),
        ("a.jsonl", '{"de": \n', ["line 1", "JSON"]),
        ("a.jsonl", "[" * 100_000, ["line 1", "JSON"]),
        ("a.tsv", "a\tb\na\n", ["line 2", "2 columns", "has 1"]),
        ("a.tsv", "a\tb\tc\n", ["line 1", "2 columns", "has 3"]),
        ("a.tsv", "id\tde\ten\n1\ta\tb\n2\ta\n", ["line 3", "3 columns", "has 2"]),
        ("a.parquet", "no parquet", ["must be a parquet file"]),
        ("a.csv", "a,b\n\na\n", ["line 3", "2 columns", "commas", "has 1"]),
        ("a.csv", '"a\nb",c\nd;e\n', ["line 3", "2 columns", "has 1"]),
        ("a.csv", "id,de,en\n1,a,b\n2,a,b,c\n", ["line 3", "3 columns", "has 4"]),
        ("a.csv", 'a,b\nc,"d\ne,f\n', ["line 2", "quote closed", "unexpected end"]),
        ("a.csv", 'a,b\n"c"d,e\n', ["line 2", "quote closed", "expected after"]),
        ("a.csv", "a,b\n" + "c" * 200_000 + ",d\n", ["line 2", "field limit"]),
        ("a.csv", b"a,b\nc,\xfc\n", ["UTF-8", "line 2"]),
        ("a.csv.gz.csv.txt", "a,b\n", ["must end in .jsonl"]),
        ("a", "a\n", ["must end in .jsonl"]),
        ("a.parquet.gz", "a\n", ["must end in .jsonl"]),
    ],
)
def test_faulty_pairs_file_names_row_and_keys(
    tmp_path: Path, name: str, content: str | bytes, parts: list[str]
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=re.escape(path)) as caught:
        read_pairs_file(path, **LANGUAGES)
    message = sentence(caught)
    for part in parts:
        assert part in message


def test_filter_pairs_counts_each_kind() -> None:
    pairs = [
        TextPair("a" * 5, "b" * 5),
        TextPair("a" * 6, "b"),
        TextPair("a", "b" * 6),
        TextPair("", "b"),
        TextPair("a", " \t"),
        TextPair("", "b" * 6),
        TextPair("\u00fc\U0001f600" * 2, "b"),
    ]
    kept, report = filter_pairs(iter(pairs), max_chars=5)
    assert kept == [pairs[0], pairs[6]]
    assert report == FilterReport(total=7, kept=2, too_long=2, empty=3, max_chars=5)
    assert str(report) == (
        "kept 2 of 7 pairs (dropped 2 longer than 5 characters and 3 with an empty side)"
    )
    with pytest.raises(ValueError, match="`max_chars` must be at least 1, but is 0"):
        filter_pairs(pairs, max_chars=0)


def test_load_translation_data_filters_training_pairs_only(tmp_path: Path) -> None:
    longer = [*PAIRS, TextPair("a" * 301, "b"), TextPair("a" * 300, "b")]
    flags: dict[str, Any] = {}
    for split in ("train", "valid", "test"):
        source, target = write_parallel(tmp_path, split, longer, ".xz")
        flags |= {f"{split}_source": source, f"{split}_target": target}
    data = load_translation_data(DataOptions(**flags))
    assert data.train == [*PAIRS[:4], longer[6]]
    assert data.valid == data.test == longer
    assert data.report == FilterReport(total=7, kept=5, too_long=1, empty=1, max_chars=300)
    limited = load_translation_data(DataOptions(**flags, limit=2, max_chars=1000))
    assert limited.train == PAIRS[:2]
    assert limited.valid == longer
    assert limited.report.kept == 6


def test_load_translation_data_mixes_kinds_of_files(tmp_path: Path) -> None:
    source, target = write_parallel(tmp_path, "valid", PAIRS)
    train = write(tmp_path / "train.jsonl", json_lines())
    flags = {**LANGUAGES, "valid_source": source, "valid_target": target}
    for kind in ("train_file", "dataset_name"):
        data = load_translation_data(DataOptions(**{kind: train}, **flags))
        assert data.train == PAIRS[:4]
        assert data.valid == PAIRS
        assert data.test == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "`train_source` and `train_target`, `train_file` or"),
        ({"train_source": "T"}, "`train_target` must be given together with `train_source`"),
        ({"train_target": "T"}, "`train_source` must be given together with `train_target`"),
        (
            {"train_source": "T", "train_target": "T", "train_file": "J"},
            "`train_file` must be left out",
        ),
        ({"train_source": "T", "train_target": "T"}, "`valid_source` and `valid_target`"),
        ({"train_file": "J"}, "`source_lang` must be the key"),
        ({"train_file": "J", "source_lang": "de"}, "`target_lang` must be the key"),
        ({"train_file": "J", **LANGUAGES}, "`valid_source` and `valid_target`"),
        ({"dataset_name": "J", **LANGUAGES}, "`valid_source` and `valid_target`"),
        (
            {"train_source": "T", "train_target": "T", "max_chars": 1},
            "`train_source` and `train_target` must hold a pair",
        ),
        ({"train_source": "T", "train_target": "T", "limit": 0}, "`limit` must be at least 1"),
        ({"train_source": "T", "train_target": "E"}, "same number of lines"),
    ],
)
def test_wrong_options_are_one_sentence(
    tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    files = {
        "T": write(tmp_path / "t.txt", "abc\n"),
        "J": write(tmp_path / "j.jsonl", json_lines()),
        "E": write(tmp_path / "e.txt", ""),
    }
    with pytest.raises(ValueError, match=message) as caught:
        load_translation_data(DataOptions(**{k: files.get(v, v) for k, v in flags.items()}))
    sentence(caught)


def test_missing_data_file_is_not_sought_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl"):
        load_translation_data(DataOptions(dataset_name=str(tmp_path / "no.jsonl"), **LANGUAGES))


@pytest.mark.parametrize("valid_name", ["validation", "dev"])
@pytest.mark.parametrize("nested", [True, False], ids=["translation", "flat"])
def test_local_folder_gives_the_same_pairs(
    tmp_path: Path, datasets: ModuleType, nested: bool, valid_name: str
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "train.jsonl", json_lines(nested=nested))
    write(folder / f"{valid_name}.jsonl", json_lines(PAIRS[:2], nested))
    options = DataOptions(dataset_name=str(folder), **LANGUAGES)
    data = load_translation_data(options)
    assert (data.train, data.valid, data.test) == (PAIRS[:4], PAIRS[:2], [])


def test_data_set_without_validation_split_is_one_sentence(
    tmp_path: Path, datasets: ModuleType
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    train = write(folder / "train.jsonl", json_lines())
    with pytest.raises(ValueError, match="must have the split 'validation'") as caught:
        load_translation_data(DataOptions(dataset_name=str(folder), **LANGUAGES))
    assert "--valid_source" in sentence(caught)
    flags = {"dataset_name": str(folder), "valid_file": train, **LANGUAGES}
    assert load_translation_data(DataOptions(**flags)).valid == PAIRS


@pytest.mark.parametrize(
    ("config", "target_lang", "message"),
    [
        ("xx", "en", "does not load: .*'xx'"),
        (None, "fr", "row 1 of the split 'train' .* has 'de', 'en'"),
    ],
)
def test_wrong_names_in_a_data_set_are_one_sentence(
    tmp_path: Path,
    datasets: ModuleType,
    config: str | None,
    target_lang: str,
    message: str,
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "train.jsonl", json_lines())
    options = DataOptions(
        dataset_name=str(folder), dataset_config=config, source_lang="de", target_lang=target_lang
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_translation_data(options)
    sentence(caught)


def test_folder_without_data_is_one_sentence(tmp_path: Path, datasets: ModuleType) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no data files") as caught:
        load_translation_data(DataOptions(dataset_name=str(folder), **LANGUAGES))
    sentence(caught)


@pytest.mark.parametrize("name", ["bentrevett/multi30k", "nothing-of-this-name"])
def test_hub_name_offline_is_one_sentence(offline: None, name: str) -> None:
    with pytest.raises(ConnectionError, match="the Hub cannot be reached") as caught:
        load_translation_data(DataOptions(dataset_name=name, **LANGUAGES))
    message = sentence(caught)
    assert f"'{name}'" in message
    assert "--train_source" in message
    assert "--train_target" in message


@pytest.mark.parametrize("missing", ["datasets", "pyarrow"])
def test_missing_library_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    path = write(tmp_path / "a.parquet", b"")
    calls = {
        "datasets": lambda: load_translation_data(DataOptions(dataset_name="a/b", **LANGUAGES)),
        "pyarrow": lambda: read_pairs_file(path, **LANGUAGES),
    }
    with pytest.raises(ImportError, match=f"`{missing}` must be installed") as caught:
        calls[missing]()
    assert "--train_source" in sentence(caught)


def test_import_and_plain_files_need_neither_datasets_nor_pyarrow(tmp_path: Path) -> None:
    source, target = write_parallel(tmp_path, "train", PAIRS, ".xz")
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None\n"
        "from hf_qrnn.data.reading import read_parallel\n"
        "print(len(read_parallel(*sys.argv[1:])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source, target], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr
