"""Texts and labels from files, folders and data sets, with a part held out."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_qrnn.data.labels import LabelledPlaces, LabelledTexts, load_labelled_texts

ROWS = [("so good", "pos"), ("so bad", "neg"), ("fine", "pos")]


def write(path: Path, rows: list[tuple[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    path.write_text("".join(lines))
    return str(path)


def contents(texts: LabelledTexts) -> list[list[tuple[str, str]]]:
    return [[(x.source, x.target) for x in part] for part in (texts.train, texts.valid, texts.test)]


def test_a_share_is_held_out_by_the_texts_alone(tmp_path: Path) -> None:
    rows = [(f"text {i}", i % 2) for i in range(300)]
    path = write(tmp_path / "a.jsonl", rows)
    train, valid, test = contents(
        load_labelled_texts(LabelledPlaces(train_file=path, valid_share=0.2))
    )
    assert 30 < len(valid) < 90
    assert sorted(train + valid) == sorted((text, str(label)) for text, label in rows)
    assert test == []
    # Whatever else is in the file, and by its name as a data set too.
    more = write(tmp_path / "b.jsonl", [*reversed(rows), ("more", 1)])
    again = load_labelled_texts(LabelledPlaces(dataset_name=more, valid_share=0.2))
    assert set(contents(again)[1]) - {("more", "1")} == set(valid)


def test_splits_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split in ("train", "validation", "test"):
        write(tmp_path / f"data/{split}.jsonl", [(f"{split} {text}", y) for text, y in ROWS])
    places = LabelledPlaces(dataset_name=str(tmp_path / "data"))
    assert contents(load_labelled_texts(places)) == [
        [(f"{split} {text}", label) for text, label in ROWS]
        for split in ("train", "validation", "test")
    ]


def test_labels_of_a_data_set_have_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    given = {"text": ["a", "b", "c", "d", "e"], "label": [1, 0, 0, 0, 0]}
    split = datasets.Dataset.from_dict(given, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": split, "test": split})
    found = load_labelled_texts(LabelledPlaces(dataset_name="someone/reviews", valid_share=0.5))
    train, valid, test = contents(found)
    assert sorted(train + valid) == [("a", "pos"), *((text, "neg") for text in "bcde")] == test


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "`train_file` or `dataset_name` must be given, but neither is."),
        ({"train_file": "a.jsonl"}, "`valid_file`, `valid_share` or a `dataset_name` with such"),
        ({"train_file": "a.jsonl", "valid_share": 1.0}, r"`valid_share` must be in \[0, 1\), but"),
        (
            {"train_file": "a.jsonl", "valid_file": "a.jsonl", "valid_share": 0.5},
            "`valid_share` must be left out with `valid_file`, but is 0.5.",
        ),
        ({"train_file": "a.jsonl", "valid_share": 1e-9}, "`valid_share` must leave texts to train"),
        ({"train_file": "empty.jsonl"}, "`train_file` must hold a text, but 'empty.jsonl' is emp"),
        ({"dataset_name": "empty.jsonl"}, "`dataset_name` must hold a text, but 'empty.jsonl' is"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match=sentence):
        load_labelled_texts(LabelledPlaces(**changes))
