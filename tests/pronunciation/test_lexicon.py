"""hf_qrnn.pronunciation.lexicon: files that people have, and lines that are no pronunciation."""

import gzip
import lzma
import re
from pathlib import Path

import pytest

from hf_qrnn.pronunciation.lexicon import read_lexicon

CMUDICT = """\
;;; # CMUdict  --  Major Version: 0.07
;;;
!EXCLAMATION-POINT  EH2 K S K L AH0 M EY1 SH AH0 N P OY2 N T
READ  R EH1 D
READ(1)  R IY1 D
'tis T IH1 Z
aalborg AO1 L B AO0 R G # place, danish
aalborg(2) AA1 L B AO0 R G # place, danish
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def test_cmudict_of_old_and_new_releases(tmp_path: Path) -> None:
    assert read_lexicon(write(tmp_path / "cmudict.dict", CMUDICT)) == {
        "!EXCLAMATION-POINT": [split("EH2 K S K L AH0 M EY1 SH AH0 N P OY2 N T")],
        "READ": [("R", "EH1", "D"), ("R", "IY1", "D")],
        "'tis": [("T", "IH1", "Z")],
        "aalborg": [split("AO1 L B AO0 R G"), split("AA1 L B AO0 R G")],
    }


def test_table_keeps_order_words_of_blanks_and_brackets(tmp_path: Path) -> None:
    text = "New York\tn uː  j ɔː k\r\n\r\na(2)\tx\nb\ty\nb\tz\nb\ty\n#\tx # y\n"
    assert read_lexicon(write(tmp_path / "l.tsv", text)) == {
        "New York": [("n", "uː", "j", "ɔː", "k")],
        "a(2)": [("x",)],
        "b": [("y",), ("z",)],
        "#": [("x", "#", "y")],
    }


def test_packed_files_are_unpacked(tmp_path: Path) -> None:
    for name, module in (("l.gz", gzip), ("l.xz", lzma)):
        (tmp_path / name).write_bytes(module.compress(CMUDICT.encode()))
        assert len(read_lexicon(tmp_path / name)) == 4


def test_refused_words_of_the_command_are_skipped(tmp_path: Path) -> None:
    text = "b\ty\n7up\t\t# must not have digits\n\t\t# is empty\n"
    assert read_lexicon(write(tmp_path / "l", text)) == {"b": [("y",)]}


@pytest.mark.parametrize("line", ["word", "word\t", "word\t \t", "\tx", "a\tb\tc", "read(2)"])
def test_line_that_is_no_pronunciation_is_named(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "l", f"b\ty\n{line}\n")
    expected = f"line 2 of '{path}' must be a word, a tab and symbols"
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        read_lexicon(path)
    assert repr(line) in str(error.value)


def test_file_without_pronunciations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold a pronunciation, but '.*' has none"):
        read_lexicon(write(tmp_path / "l", ";;; nothing\n\n"))
    with pytest.raises(FileNotFoundError, match="must be an existing file, but is 'none'"):
        read_lexicon("none")


def test_lines_of_comment_are_no_words(tmp_path: Path) -> None:
    text = "# made by hand\n## again # twice\n#\n#HASH HH AE SH\n#\tx\n# a\ty\n"
    assert read_lexicon(write(tmp_path / "l.dict", text)) == {
        "#HASH": [split("HH AE SH")], "#": [("x",)], "# a": [("y",)],
    }  # fmt: skip
