"""benchmarks/decoding_docs.py: the pages say what the stored records say."""

from pathlib import Path
from typing import Any

import bench_decoding
import decoding_docs
import pytest
from decoding_docs import NOT_YET, between, details, summary, write
from results import Record, read

ABOUT: Record = {
    **{"bench": "environment", "cpu": "C", "cpu_capability": "AVX2", "cores": 2, "torch": "1"},
    **{"hf_qrnn": "0", "date": "today", "transformers": "5", "ctranslate2": "not installed"},
    "command": ["--check"],
}


def decoding(by: str, batch: int, **others: Any) -> Record:
    task = {"batch": batch, "length": 100, "beams": 1, "source": 100}
    return {"bench": "decoding", "model": "modern", "by": by, **task, "ms": 5.0, **others}


RECORDS = [
    ABOUT,
    {"bench": "process", "model": "modern", "by": "engine int8", "seconds": 0.4, "peak_mb": 70.5,
     "file_mb": 5.6},
    decoding("engine int8", 1, ms=9.51, of_reference=20.5),
    decoding("engine int8", 32, characters_per_second=21000),
    decoding("Marian", 1, ms=330.0),
    decoding("Marian", 32, characters_per_second=2000),
    {**decoding("CTranslate2 int8", 1), "peer": "CTranslate2 int8", "skipped": "not installed"},
]  # fmt: skip


def test_tables_of_records() -> None:
    text = details(RECORDS)
    assert text.startswith("C (AVX2), 2 cores, torch 1, hf_qrnn 0, today; transformers 5, ctrans")
    assert "`python benchmarks/bench_decoding.py --check`" in text
    assert "| modern | engine int8 | 0.4 | 70.5 | 5.6 |" in text
    assert "| modern | 1 x (100 + 100) | engine int8 | 9.51 |  | 20.5 |" in text
    assert text.endswith("- CTranslate2 int8: not installed")
    assert summary(RECORDS).splitlines()[2:] == [
        "| by | one sentence, ms | batch of 32, characters/s | whole process, s "
        "| peak memory, MB | file, MB |",
        "| --- | --- | --- | --- | --- | --- |",
        "| engine int8 | 9.5 | 21,000 | 0.4 | 70.5 | 5.6 |",
        "| Marian | 330.0 | 2,000 |  |  |  |",
    ]
    assert details([]) == summary([]) == NOT_YET


def test_pages_are_written_between_their_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = f"before\n\n{decoding_docs.START}\nold\n{decoding_docs.END}\n\nafter\n"
    docs, readme, stored = (tmp_path / name for name in ("docs.md", "README.md", "out.jsonl"))
    for path in (docs, readme):
        path.write_text(page)
    for _ in range(2):  # again is the same
        write(RECORDS, stored, docs, readme)
        assert read(stored) == RECORDS
        assert between(docs.read_text()) == details(RECORDS)
        assert between(readme.read_text()) == summary(RECORDS)
        assert docs.read_text().startswith("before\n\n")
        assert docs.read_text().endswith("\n\nafter\n")
    written: list[Any] = []
    monkeypatch.setattr(decoding_docs, "write", written.append)
    assert bench_decoding.main(["--table", str(stored), "--docs"]) == 0
    assert written == [RECORDS]


def test_tiny_figures_are_written_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_decoding.main(["--quick", "--docs"])
    assert "--docs must be left out with --quick" in capsys.readouterr().err


def test_the_pages_have_the_tables_of_the_stored_records() -> None:
    stored = read(decoding_docs.RESULTS) if decoding_docs.RESULTS.is_file() else []
    rule = "run `python benchmarks/bench_decoding.py --table FILE --docs` with the stored records"
    for path, text in ((decoding_docs.DOCS, details), (decoding_docs.README, summary)):
        assert between(path.read_text(encoding="utf-8")) == text(stored), rule
