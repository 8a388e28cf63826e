"""Word vectors of text files."""

import gzip
from pathlib import Path

import numpy
import pytest

from hf_qrnn.data.word_vectors import read_word_vectors

GLOVE = "the 1 2.5\n. . . 3 4\nnew\u2028york -1 1e-2\nthe 9 9\n"
WANTED = {"the", ". . .", "new\u2028york", "absent"}


@pytest.mark.parametrize("head", ["", "4 2\n"], ids=["glove", "word2vec"])
@pytest.mark.parametrize("packed", [False, True])
def test_vectors_of_the_words_asked_for(tmp_path: Path, head: str, packed: bool) -> None:
    path = tmp_path / ("v.txt.gz" if packed else "v.txt")
    # word2vec's own program ends lines with a blank.
    text = (head + GLOVE).replace("\n", " \n").encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    found = read_word_vectors(path, WANTED, size=2)
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "the": [1.0, 2.5],
        ". . .": [3.0, 4.0],
        "new\u2028york": [-1.0, pytest.approx(0.01)],
    }
    assert {vector.dtype for vector in found.values()} == {numpy.dtype("float32")}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a 1 2 3\n", "must hold vectors of 2 numbers, the `embedding_size`, but those of .* 3"),
        (b"2 3\na 1 2 3\n", "must hold vectors of 2 numbers, the `embedding_size`, but .* have 3"),
        (b"b 1 2\na 1\n", "line 2 of .* must be a word and 2 numbers between blanks, but is not"),
        (b"b 1 2\na 1 x\n", "line 2 of .* must be a word and 2 numbers"),
        (b"a 1 nan\n", "line 1 of .* must be a word and 2 numbers"),
        (b"b 1 2\n\xff 1 2\n", "`path` must be UTF-8 text, but .* an invalid byte in line 2"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_word_vectors(path, {"a"}, size=2)


def test_half_a_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "v.txt.gz"
    path.write_bytes(gzip.compress(GLOVE.encode())[:-9])
    with pytest.raises(ValueError, match="`path` must be a whole file of word vectors, but"):
        read_word_vectors(path, {"zzz"}, size=2)
    with pytest.raises(FileNotFoundError, match="`path` must be an existing file, but is"):
        read_word_vectors(tmp_path / "none.txt", {"a"}, size=2)
