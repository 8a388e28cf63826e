"""The box: where its models are, which name is one of them, what a folder says of itself."""

import json
from pathlib import Path

import pytest

from hf_qrnn.data import box

CARD = """---
language:
- de
- en
license: cc-by-2.0
pipeline_tag: translation
model-index:
- name: some
  results:
  - task: {type: translation}
    dataset: {name: Tatoeba, type: tatoeba}
    metrics:
    - {type: bleu, value: 45.25}
  - task: {type: translation}
    dataset: {name: Tatoeba, type: tatoeba}
    metrics:
    - {type: chrf, value: 62.5}
  - task: {type: translation}
    dataset: {name: TED, type: ted}
    metrics:
    - {type: bleu, value: 9.0}
---

# Title
"""


def make(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package without models."""
    monkeypatch.setattr(box, "_PACKAGE", tmp_path / "lib" / "hf_qrnn")
    return tmp_path / "lib" / "hf_qrnn"


def test_models_of_the_clone_are_beside_the_package() -> None:
    assert box.box_folder() == Path(__file__).resolve().parents[2] / "models"
    assert "pronounce-en" in box.box_names()


def test_models_of_a_wheel_are_in_the_package_and_go_first(package: Path) -> None:
    assert box.box_folder() is None
    assert box.box_names() == []
    make(package.parent / "models" / "beside")
    assert box.box_folder() is None  # any folder of site-packages
    (package.parent / "pyproject.toml").touch()
    assert box.box_names() == ["beside"]
    make(package / "models" / "inside")
    (package / "models" / "notes").mkdir()  # no model
    assert box.box_names() == ["inside"]


def test_names_are_those_of_folders_and_nothing_else(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make(package / "models" / "de-en")
    make(package / "secret")
    monkeypatch.chdir(tmp_path)
    assert box.locate("de-en") == str(own)
    for other in ("user/de-en", "de-en@v1", "../secret", "models/de-en", "", ".", "fr-en", "de\0"):
        assert box.find_in_box(other) is None
    assert box.locate("user/de-en") == "user/de-en"
    (tmp_path / "de-en").mkdir()
    assert box.locate("de-en") == "de-en"  # what is there goes first
    assert box.find_in_box("de-en") == own


def test_a_folder_is_described_by_its_card(tmp_path: Path) -> None:
    sample = json.dumps({"lines": 3, "bleu": 1.5})
    found = box.describe(make(tmp_path / "mine", README_md=CARD, sample_json=sample))
    assert (found.name, found.task, found.license) == ("mine", "translation", "cc-by-2.0")
    assert found.languages == ("de", "en")
    assert found.scores == {"bleu": 45.25, "chrf": 62.5}
    assert found.scored_on == "Tatoeba"
    assert found.num_bytes == len(CARD.encode()) + len(sample) + 2


def test_without_scores_in_the_card_the_sample_has_them(tmp_path: Path) -> None:
    files = {"sample_json": json.dumps({"lines": 3, "bleu": 1.5, "bleu_signature": "x"})}
    head = "---\nlicense: mit\nlanguage: en\nmodel-index: []\n---\n"
    found = box.describe(make(tmp_path / "mine", README_md=head, **files))
    assert (found.scores, found.scored_on) == ({"bleu": 1.5}, "3 lines of its sample")
    assert (found.license, found.languages) == ("mit", ("en",))


def test_a_folder_that_says_nothing_is_described_too(tmp_path: Path) -> None:
    found = box.describe(make(tmp_path / "mine", README_md="# no head\n"))
    assert (found.task, found.license, dict(found.scores)) == ("not stated", "not stated", {})


def test_a_damaged_head_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", README_md="---\na: [\n---\n")
    with pytest.raises(ValueError, match=r"The head of '.*README.md' must be YAML"):
        box.describe(folder)
