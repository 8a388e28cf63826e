"""hf_qrnn.data.held_out: which training pairs validate."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from hf_qrnn.data.held_out import hold_out
from hf_qrnn.data.reading import DataOptions, TextPair, load_translation_data

PAIRS = [TextPair(f"w{number // 2}", f"P {number}") for number in range(2000)]


def test_a_word_goes_the_same_way_with_all_its_pronunciations() -> None:
    stay, out = hold_out(PAIRS, 0.1)
    assert stay + out != PAIRS  # both are mixed through the file
    assert sorted(stay + out, key=PAIRS.index) == PAIRS
    sources = {pair.source for pair in out}
    assert 60 <= len(sources) <= 140
    assert not sources & {pair.source for pair in stay}
    # By the hash of the word alone: another file with this word holds it out too.
    some = sorted(sources)[0]
    assert int(hashlib.sha256(f"\n{some}".encode()).hexdigest()[:8], 16) / 2**32 < 0.1
    assert hold_out([TextPair(some, "X")], 0.1) == ([], [TextPair(some, "X")])
    assert hold_out(PAIRS, 0.0) == (PAIRS, [])


def test_pairs_are_held_out_where_there_are_no_others(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    path.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in PAIRS))
    data = load_translation_data(DataOptions(train_file=str(path), valid_share=0.1, limit=50))
    stay, out = hold_out(PAIRS, 0.1)
    assert (data.train, data.valid, data.test) == (stay[:50], out, [])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"valid_share": 1.0}, r"`valid_share` must be in \[0, 1\), but is 1.0"),
        ({"valid_share": -0.1}, r"`valid_share` must be in \[0, 1\), but is -0.1"),
        ({"valid_share": float("nan")}, r"`valid_share` must be in \[0, 1\), but is nan"),
        ({"valid_share": 0.5, "valid_file": "x"}, "must be left out with `valid_file`, but is 0.5"),
        ({"valid_share": 0.5, "streaming": True}, "must be left out with `streaming`, but is 0.5"),
        ({"valid_share": 1e-9}, "`valid_share` must leave pairs .* but is 1e-09 of 2 pairs"),
        ({}, "`valid_source` and `valid_target`, `valid_file`, `valid_share` or a"),
    ],
)
def test_wrong_shares_are_one_sentence(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "words.tsv").write_text("a\tA\nb\tB\n")
    with pytest.raises(ValueError, match=sentence):
        load_translation_data(DataOptions(train_file=str(tmp_path / "words.tsv"), **options))
