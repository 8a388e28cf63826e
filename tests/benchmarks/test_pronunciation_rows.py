"""Rows, stored results, goals and tables of the pronunciation benchmark."""

import json
import re
from pathlib import Path

import pytest
from goals import GOALS, PRONUNCIATION_GOALS, check, judge
from pronunciation_data import CMUDICT, LANGUAGES, TEN
from pronunciation_rows import (
    TABLE,
    Row,
    goal_records,
    listing,
    markdown,
    parse_row,
    read_result,
    read_results,
    write_result,
)
from results import Record
from sources import ROOT


def record(row: Row, wer: float = 10.0, **more: object) -> Record:
    figures = {"wer": wer, "per": 2.5, "wer_first": wer + 1, "per_first": 3.0}
    counts = {"parameters": 1000, "updates": 20, "seconds": 60.0, "words_per_second": 1234.5}
    about = {"row": row.name, "command": f"python x {row.name}", "date": "2026-11-30"}
    return {**about, **figures, **counts, **more}


def results(*rows: Row, wer: float = 10.0, **more: object) -> dict[str, Record]:
    return {row.name: record(row, wer, **more) for row in rows}


# ------------------------------------------------------------------ names


def test_every_row_has_a_name_of_its_own_that_is_read_back() -> None:
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names)
    assert tuple(map(parse_row, names)) == TABLE


def test_the_table_has_all_that_is_asked_for() -> None:
    names = {row.name for row in TABLE}
    for data in LANGUAGES:
        assert {f"{data}-qrnn-{x}-0" for x in ("single", "ensemble", "joint")} <= names
    assert {f"cmudict-qrnn-{x}-0" for x in ("single", "ensemble", "distilled")} <= names
    for model in ("transformer", "lstm"):
        assert {f"{data}-{model}-single-0" for data in ("fre", "kor", "hbs_latn")} <= names
    assert {"cmudict-g2p_en", "cmudict-espeak"} <= names


@pytest.mark.parametrize(
    "name",
    ["", "fre", "fre-qrnn-single", "fre-qrnn-single-x", "fre-qrnn-single--1", "ger-qrnn-single-0",
     "fre-gru-single-0", "fre-qrnn-triple-0", "fre-lstm-ensemble-0", "fre-qrnn-single-0-updates",
     "fre-lstm-single-0-hours", "fre-lstm-single-0-minutes", "fre-espeak", "cmudict-qrnn-joint-0",
     "fre-qrnn-single-00", "fre-qrnn-single-0-updates-0", "fre-qrnn-single-\u0663"],
)  # fmt: skip
def test_what_is_no_row_is_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"^a row must be DATA-MODEL-VARIANT-SEED.*, but is '"):
        parse_row(name)


# ------------------------------------------------------------------ results


def test_a_result_is_kept_and_found_again(tmp_path: Path) -> None:
    row = Row("fre", "qrnn")
    assert read_result(row, tmp_path) is None
    write_result(row, record(row, 7.5), tmp_path / "new")
    assert read_results(tmp_path / "new") == {row.name: record(row, 7.5)}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["fre-qrnn-single-0.json"]


@pytest.mark.parametrize("text", ['{"row": "kor-qrnn-single-0"}', '{"row": ', "[]"])
def test_a_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "fre-qrnn-single-0.json").write_text(text)
    with pytest.raises(ValueError, match=r"fre-qrnn-single-0.* must be .*, but is"):
        read_result(Row("fre", "qrnn"), tmp_path)


def test_the_list_has_every_row_and_counts_the_missing_ones() -> None:
    text, missing = listing(results(Row("fre", "qrnn")), lambda row: f"run {row.name}")
    assert missing == len(TABLE) - 1
    assert "fre-qrnn-single-0: WER 10.00 %, PER 2.50 %, 1,000 parameters, 20 updates" in text
    assert "kor-qrnn-single-0: MISSING\n    run kor-qrnn-single-0\n" in text
    assert text.endswith(f"1 of {len(TABLE)} rows have a result")
    assert all(f"{row.name}: " in text for row in TABLE)
    _, missing = listing(results(*TABLE), lambda row: "")
    assert missing == 0


# ------------------------------------------------------------------ goals


def verdicts(found: dict[str, Record]) -> dict[str, tuple[float, bool]]:
    judged = judge(goal_records(found), PRONUNCIATION_GOALS).verdicts
    return {x.name.removeprefix("pronunciation "): (x.value, x.met) for x in judged}


def test_the_mean_is_of_ten_languages_or_none() -> None:
    ten = results(*(Row(data, "qrnn") for data in TEN), wer=9.0)
    ten["fre-qrnn-single-0"]["wer"] = 12.5
    assert verdicts(ten) == {"wer of mean of ten, single": (9.35, False)}
    ten["fre-qrnn-single-0"]["wer"] = 11.0
    assert verdicts(ten) == {"wer of mean of ten, single": (9.2, True)}
    del ten["geo-qrnn-single-0"]
    assert verdicts(ten) == {}


def test_the_better_of_ensemble_and_distilled_counts() -> None:
    found = results(Row("eng_us", "qrnn", "ensemble"), wer=41.5)
    assert verdicts(found) == {"wer of eng_us, ensemble or distilled": (41.5, False)}
    found |= results(Row("eng_us", "qrnn", "distilled"), wer=40.5)
    assert verdicts(found) == {"wer of eng_us, ensemble or distilled": (40.5, True)}


def test_english_is_held_against_the_rivals_that_were_measured() -> None:
    found = results(Row(CMUDICT, "qrnn"), wer=21.5, words_per_second=4000.0, ms_per_word=1.5)
    found |= results(Row(CMUDICT, "espeak", "rival"), wer=38.0)
    assert verdicts(found) == {
        "wer of cmudict, single": (21.5, False),
        "wer of cmudict, single against espeak": (21.5, True),
        "ms per word of cmudict, single": (1.5, True),
        "words per second": (4000.0, False),
    }
    found |= results(Row(CMUDICT, "g2p_en", "rival"), wer=20.0)
    assert verdicts(found)["wer of cmudict, single against g2p_en"] == (21.5, False)
    found |= results(Row(CMUDICT, "qrnn", "distilled"), wer=19.0, per=4.8)
    assert verdicts(found)["wer of cmudict, distilled"] == (19.0, True)
    assert verdicts(found)["per of cmudict, distilled"] == (4.8, False)


def test_goals_have_names_of_their_own_beside_those_of_speed() -> None:
    names = [goal.name for goal in (*GOALS, *PRONUNCIATION_GOALS)]
    ours = [goal.name for goal in PRONUNCIATION_GOALS]
    assert len(set(ours)) == len(ours)
    assert not set(ours) & set(names[: len(GOALS)])


def test_a_listed_miss_is_known_and_the_list_may_have_other_benchmarks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = goal_records(results(Row(CMUDICT, "qrnn"), wer=21.5, words_per_second=9e3))
    misses = tmp_path / "misses.md"
    misses.write_text("- `CPU layer forward, one row, 1x32`\n")
    assert check(records, misses, PRONUNCIATION_GOALS) == 1
    misses.write_text("- `pronunciation wer of cmudict, single`\n")
    assert check(records, misses, PRONUNCIATION_GOALS) == 0
    assert "the cause is in misses.md" in capsys.readouterr().out


# ------------------------------------------------------------------ tables


def test_tables_have_a_line_for_each_and_a_dash_for_what_is_missing() -> None:
    found = results(Row("fre", "qrnn"), wer=6.5)
    found |= results(Row("fre", "lstm"), wer=7.25, parameters=2000)
    found |= results(Row(CMUDICT, "espeak", "rival"), wer=38.0, about="espeak-ng 1.51")
    text = markdown(found)
    assert "| fre | 6.50 | - | - | 7.40 |" in text
    assert "| fre | 6.50 | - | 7.25 | 1,000 / - / 2,000 |" in text
    assert "| espeak-ng 1.51 | 38.00 | 39.00 | 2.50 | 3.00 | - | - | 1,234 |" in text
    assert "| mean of ten | - | - | - | 9.35 |" in text
    wide = results(*(Row(data, "qrnn", "ensemble") for data in TEN), wer=8.5)
    assert "| mean of ten | - | 8.50 | - | 9.35 |" in markdown(wide)


def test_the_document_has_the_tables_of_the_stored_results() -> None:
    page = (ROOT / "docs" / "pronunciation.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"<!-- tables -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert written.strip() == markdown(read_results()), (
        "write the output of `python benchmarks/pronunciation.py --table` into the page"
    )


def test_stored_results_say_what_one_needs_to_repeat_them() -> None:
    stored = read_results()
    assert {"cmudict-espeak", "cmudict-g2p_en"} <= stored.keys()
    for name, found in stored.items():
        command = f"python benchmarks/pronunciation.py {name}"
        assert re.fullmatch(rf"{command}( .*)?", found["command"])
        for field in ("data", "date", "hardware", "versions", "signature", "words_per_second"):
            assert found[field], (name, field)
        assert not re.search(r"/(home|tmp|root|work|mnt)/", json.dumps(found)), name
