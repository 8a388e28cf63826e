"""hf_qrnn.data.distilled: a teacher's translations, of which an epoch draws one for each source."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_qrnn.data.batching import BucketBatchSampler, EncodedPair
from hf_qrnn.data.distilled import (
    DistilledPair,
    DrawingSampler,
    alternatives_of,
    describe_distilled,
    read_distilled,
    with_distilled,
)
from hf_qrnn.data.reading import DataOptions, TextPair, load_translation_data
from hf_qrnn.data.translations import distilled_line
from hf_qrnn.training.options import parse_options

# Of "a" three lines of the probabilities 0.6, 0.15 and 0.05; of "b" one; of "c" two equal ones.
LINES = (
    f"a\tA\t{math.log(0.6)}\n"
    f"b\tB\t{math.log(0.9)}\n"
    f"a\tAA\t{math.log(0.15)}\n"
    f"c\tC\t{math.log(0.01)}\n"
    f"a\tAAA\t{math.log(0.05)}\n"
    f"c\tCC\t{math.log(0.01)}\n"
)
OWN = [TextPair("x", "X"), TextPair("y", "Y")]


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def encoded(pairs: Sequence[TextPair]) -> list[EncodedPair]:
    return [EncodedPair([7] * len(p.source), [7] * len(p.target)) for p in pairs]


def epoch(sampler: Any, number: int) -> list[int]:
    sampler.set_epoch(number)
    return [index for plan in sampler for index in plan.indices]


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [("a b", "A  ", -0.5, ""), ('"é"', "x", 0.0, "fre"), ("a b", "\u2028", -1e3, "")]
    content = "".join(
        distilled_line(source, target, score, language or None)
        for source, target, score, language in rows
    )
    found = read_distilled([write(tmp_path / "a.tsv", content)])
    assert [(x.source, x.target, x.score, x.language) for x in found] == rows
    assert [x.group for x in found] == [0, 1, 0]
    again = read_distilled([str(tmp_path / "a.tsv")] * 2)
    assert [x.group for x in again] == [0, 1, 0, 2, 3, 2]  # two files are two teachers


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a\tb\n", "must have 3 columns .*, but has 2"),
        ("a\tb\t-1\tfre\tx\n", "must have 3 columns .*, but has 5"),
        ("a\tb\tc\n", "the score in line 2 of .* number of at most 0, but is 'c'"),
        ("a\tb\t0.5\n", "the score in line 2 of .*, but is '0.5'"),
        ("a\tb\t-inf\n", "the score in line 2 of .*, but is '-inf'"),
        ("a\tb\tnan\n", "the score in line 2 of .*, but is 'nan'"),
    ],
)
def test_a_line_that_is_none_is_named(line: str, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\tb\t-1\n" + line)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_distilled([path])
    assert f"line 2 of '{path}'" in str(caught.value)


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "a\rb"])
def test_a_text_that_makes_no_line_is_refused(text: str) -> None:
    for texts in ((text, "x"), ("x", text)):
        with pytest.raises(ValueError, match="must have no tab and no line end"):
            distilled_line(*texts, -1.0)


def test_pairs_are_mixed_in_behind_the_training_pairs(tmp_path: Path) -> None:
    own = write(tmp_path / "own.tsv", "x\tX\ny\tY\nz\tZ\n" + "w" * 9 + "\tW\n")
    options = DataOptions(
        train_file=own,
        valid_file=own,
        source_lang="de",
        target_lang="en",
        limit=2,
        max_chars=5,
        distilled_file=[
            write(tmp_path / "a.tsv", LINES + "\tX\t-1\nlonger\tX\t-1\n"),
            write(tmp_path / "b.tsv", "a\tA\t-1\n"),
        ],
    )
    data = with_distilled(load_translation_data(options), options)
    assert data.train[:2] == OWN  # the limit counts these alone
    lines = data.train[2:]
    assert all(isinstance(pair, DistilledPair) for pair in lines)
    assert [x.target for x in lines] == ["A", "B", "AA", "C", "AAA", "CC", "A"]
    assert str(data.report).startswith("kept 10 of 13 pairs (dropped 2 longer than 5 characters ")
    plain = load_translation_data(options)
    assert with_distilled(plain, DataOptions()) is plain


def test_a_file_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    own = write(tmp_path / "own.tsv", "x\tX\n")
    given: dict[str, Any] = {"train_file": own, "valid_file": own, "max_chars": 2}
    languages = {"source_lang": "de", "target_lang": "en"}
    options = DataOptions(
        **given, **languages, distilled_file=[write(tmp_path / "a", "abc\tX\t-1\n")]
    )
    with pytest.raises(ValueError, match=r"`distilled_file` must hold a line .* but 0 of its 1"):
        with_distilled(load_translation_data(options), options)
    missing = DataOptions(**given, **languages, distilled_file=[str(tmp_path / "none")])
    with pytest.raises(FileNotFoundError, match="`distilled_file` must be an existing file"):
        with_distilled(load_translation_data(missing), missing)


def test_languages_are_where_the_training_pairs_have_them(tmp_path: Path) -> None:
    own = write(tmp_path / "own.tsv", "de\ten\tlang\nx\tX\tfre\n")
    tagged = write(tmp_path / "tagged.tsv", "a\tA\t-1\tfre\na\tB\t-1\tkor\n")
    plain = write(tmp_path / "plain.tsv", "a\tA\t-1\n")

    def mixed(file: str, **more: Any) -> list[TextPair]:
        given: dict[str, Any] = {"train_file": own, "valid_file": own, **more}
        options = DataOptions(**given, source_lang="de", target_lang="en", distilled_file=[file])
        return with_distilled(load_translation_data(options), options).train

    pairs = mixed(tagged, language_tag="lang")
    assert [pair.language for pair in pairs] == ["fre", "fre", "kor"]
    assert alternatives_of(pairs) == []  # one word of two languages is two sources
    with pytest.raises(ValueError, match=r"line 1 of .* must have 4 columns .* but has 3"):
        mixed(plain, language_tag="lang")
    with pytest.raises(ValueError, match=r"line 1 of .* must have 3 columns .* but has 4"):
        mixed(tagged, train_file=write(tmp_path / "two.tsv", "x\tX\n"))
    with pytest.raises(ValueError, match=r"the last column in line 1 of .* is no language"):
        mixed(write(tmp_path / "bad.tsv", "a\tA\t-1\ta b\n"), language_tag="lang")


def test_nothing_is_mixed_into_a_stream() -> None:
    options = DataOptions(dataset_name="x", streaming=True, distilled_file=["a", "b"])
    with pytest.raises(ValueError, match="left out with `streaming`, but is 'a', 'b'"):
        load_translation_data(options)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["y"]),
        (["--distilled_file", "a"], ["a"]),
        (["--distilled_file", "a", "b", "--limit", "3", "--distilled_file", "c"], ["a", "b", "c"]),
    ],
)
def test_the_flag_may_come_again_and_overrides_a_yaml_file(
    arguments: list[str], expected: list[str], tmp_path: Path
) -> None:
    config = ["--config", write(tmp_path / "a.yaml", "distilled_file: [y]\n")]
    for order in ([*config, *arguments], [*arguments, *config]):
        (options,) = parse_options([DataOptions], order)
        assert options.distilled_file == expected


# ------------------------------------------------------------------ drawing


def drawing(pairs: Sequence[TextPair], **options: Any) -> DrawingSampler:
    given = {"max_tokens": 6, "seed": 3, **options}
    return DrawingSampler(encoded(pairs), alternatives_of(pairs), **given)


def test_an_epoch_has_one_line_of_each_source(tmp_path: Path) -> None:
    pairs = [*OWN, *read_distilled([write(tmp_path / "a.tsv", LINES)])]
    for shuffle in (True, False):
        sampler = drawing(pairs, shuffle=shuffle)
        for number in range(20):
            found = [pairs[index] for index in epoch(sampler, number)]
            assert sorted(pair.source for pair in found) == ["a", "b", "c", "x", "y"]


def test_lines_are_drawn_by_their_probabilities(tmp_path: Path) -> None:
    pairs = [*OWN, *read_distilled([write(tmp_path / "a.tsv", LINES)])]
    sampler, count = drawing(pairs), 4000
    drawn = Counter(
        pairs[index].target for number in range(count) for index in epoch(sampler, number)
    )
    # 0.6, 0.15 and 0.05 are shared out anew, among the lines there are; so are 0.01 and 0.01.
    shares = {"A": 0.75, "AA": 0.1875, "AAA": 0.0625, "C": 0.5, "CC": 0.5}
    for target, share in shares.items():
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(drawn[target] - count * share) < 4 * deviation, target
    assert drawn["B"] == drawn["X"] == drawn["Y"] == count


def test_probabilities_too_small_for_a_number_are_drawn_too() -> None:
    pairs = [DistilledPair("a", target, score=-5000.0) for target in ("b", "cc")]
    sampler = drawing(pairs)
    drawn = Counter(
        pairs[index].target for number in range(400) for index in epoch(sampler, number)
    )
    assert 150 < drawn["b"] < 250
    assert drawn["cc"] == 400 - drawn["b"]


def test_what_is_drawn_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    pairs = [*OWN, *read_distilled([write(tmp_path / "a.tsv", LINES)])]
    epochs = [[epoch(drawing(pairs, seed=seed), n) for n in range(12)] for seed in (1, 1, 2)]
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    assert len({tuple(sorted(found)) for found in epochs[0]}) > 1
    # A resumed run leaves out what it has seen of the same plan.
    sampler = drawing(pairs, seed=1)
    sampler.set_epoch(5)
    whole = list(sampler)
    sampler.set_epoch(5, start=2)
    assert list(sampler) == whole[2:]


def test_every_rank_draws_the_same(tmp_path: Path) -> None:
    pairs = [*OWN, *read_distilled([write(tmp_path / "a.tsv", LINES)])]
    for number in range(6):
        ranks = [drawing(pairs, world_size=2, rank=rank, max_tokens=3) for rank in range(2)]
        for sampler in ranks:
            sampler.set_epoch(number)
        plans = [plan for sampler in ranks for plan in sampler if not plan.is_filler]
        found = [pairs[index].source for plan in plans for index in plan.indices]
        assert sorted(found) == ["a", "b", "c", "x", "y"]


def test_without_alternatives_the_plan_is_what_it_was() -> None:
    pairs = [TextPair("x" * (1 + i % 5), "y" * (1 + i % 3)) for i in range(40)]
    pairs += [DistilledPair("z" * i, "z", score=-1.0, group=i) for i in range(1, 6)]
    plain = BucketBatchSampler(encoded(pairs), max_tokens=12, seed=3)
    sampler = drawing(pairs, max_tokens=12)
    for number in range(3):
        assert epoch(sampler, number) == epoch(plain, number)


def test_the_description_tells_scores_and_texts_apart() -> None:
    pairs = [DistilledPair("a", "b", score=-1.0), DistilledPair("a", "c", score=-2.0)]
    about = describe_distilled([*OWN, *pairs])
    assert (about["distilled_lines"], about["distilled_sources"]) == (2, 1)
    other = describe_distilled([*OWN, pairs[0], DistilledPair("a", "c", score=-2.5)])
    assert other["distilled_sha256"] != about["distilled_sha256"]
    texts = describe_distilled([*OWN, pairs[0], DistilledPair("a", "d", score=-2.0)])
    assert texts["distilled_sha256"] != about["distilled_sha256"]
    assert describe_distilled(OWN) == {}
