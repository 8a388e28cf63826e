"""Pictures of attention, of hidden states and of training, as matplotlib figures.

Nothing here touches pyplot or any other global state: every function returns a `Figure` of its
own, which `save_figure` writes to a file and a notebook shows by itself.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
"""The kinds of file `save_figure` writes."""

_MARKS = {" ": "\u2423", "\t": "\u21e5", "\n": "\u23ce", "\r": "\\r", "\xa0": "\u237d"}
_INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")
_FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans",
    "Noto Emoji",
    "Segoe UI Emoji",
    "Symbola",
)
_CELL = 0.2  # inches
_LONGEST_SIDE = 30.0  # inches; a longer text gets smaller cells, not a larger file
_DPI = 150
INK, BLUE, _FAINT = "#222222", "#1f4e86", "#808080"


def attention_figure(
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    weights: Any,
) -> Figure:
    """Draw attention as a heat map: a row for each target token, a column for each source token.

    Blanks, tabs and line ends are drawn as marks; a character that no installed font has is drawn
    as its code point ("U+4E2D").

    Args:
        source_tokens: S texts.
        target_tokens: T texts.
        weights: (T, S), an array or a CPU tensor, in [0, 1]; rows usually add up to 1.

    Raises:
        ValueError: If `weights` is not (T, S) or there is no token.
    """
    values = _matrix("weights", weights, (len(target_tokens), len(source_tokens)))
    cell = min(_CELL, _LONGEST_SIDE / max(values.shape))
    width, height = (max(1.2, size * cell) for size in reversed(values.shape))
    figure, axes = _new_map(width, height)
    largest = float(values.max())
    image = axes.imshow(values, cmap="Blues", vmin=0.0, vmax=largest if largest > 0 else 1.0)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("source", color=_FAINT, fontsize=9)
    axes.set_ylabel("target", color=_FAINT, fontsize=9)
    _label_columns(axes, source_tokens, cell)
    _label_ticks(axes.yaxis, target_tokens, cell)
    _separate_words(axes, source_tokens, target_tokens)
    decorate(axes)
    _add_color_bar(figure, axes, image, "attention weight", (width, height))
    return figure


def hidden_states_figure(tokens: Sequence[str], states: Any) -> Figure:
    """Draw a layer's states over time as a heat map, after Fig. 3 of 1611.01576.

    Channels do not mix inside the pooling, so a row is the memory of one unit: the picture shows
    what it reacts to and for how long.

    Args:
        tokens: S texts, the columns.
        states: (S, H), an array or a CPU tensor; red is positive, blue negative, the colours
            reach -1 and 1, or farther where a state does.

    Raises:
        ValueError: If `states` is not (S, H) or there is no token.
    """
    from matplotlib.ticker import MaxNLocator

    values = _matrix("states", states, (len(tokens), None)).T  # (H, S)
    cell = min(_CELL, _LONGEST_SIDE / values.shape[1])
    width, height = max(2.4, values.shape[1] * cell), min(6.0, max(1.6, values.shape[0] * 0.05))
    figure, axes = _new_map(width, height)
    limit = max(1.0, float(abs(values).max()))
    image = axes.imshow(
        values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    _label_columns(axes, tokens, cell)
    axes.set_ylabel("channel", color=_FAINT, fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="y", labelsize=8, labelcolor=INK)
    decorate(axes)
    _add_color_bar(figure, axes, image, "state", (width, height))
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure to a .png (150 dots per inch), .svg or .pdf file.

    Raises:
        ValueError: If the name ends otherwise.
        OSError: If the file cannot be written.
    """
    check_figure_path(path)
    try:
        figure.savefig(path, dpi=_DPI, bbox_inches="tight", pad_inches=0.1)
    except OSError as error:  # of a disk that is full, which names no file
        error.filename = error.filename or str(path)
        raise


def check_figure_path(path: str | Path) -> None:
    """Raise ValueError unless `path` names a kind of picture that `save_figure` writes."""
    if Path(path).suffix.lower() not in FIGURE_SUFFIXES:
        rule = ", ".join(FIGURE_SUFFIXES)
        raise ValueError(f"The name of a picture must end in one of {rule}, but is '{path}'.")


def _matrix(name: str, given: Any, shape: tuple[int, int | None]) -> Any:
    """Return `given` as a float array, checked to be of `shape` (None: any size but 0)."""
    import numpy

    values = numpy.asarray(given, dtype=numpy.float64)
    rows, columns = shape
    fits = values.ndim == 2 and values.size > 0 and values.shape[0] == rows
    if not fits or (columns is not None and values.shape[1] != columns):
        rule = f"({rows}, {'any' if columns is None else columns})"
        raise ValueError(
            f"`{name}` must be of shape {rule}, one row or column a token and at least one, "
            f"but is {tuple(values.shape)}."
        )
    return values


def _new_map(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure with axes of `width` x `height` inches and room for labels around them."""
    from matplotlib.figure import Figure

    # No layout engine: it draws everything several times, seconds for a text of 300 characters.
    left, right, below, above = 0.9, 1.0, 0.6, 1.1
    size = (left + width + right, below + height + above)
    figure = Figure(figsize=size, facecolor="white")
    place = (left / size[0], below / size[1], width / size[0], height / size[1])
    return figure, figure.add_axes(place)


def decorate(axes: Axes) -> None:
    """Take ticks and heavy lines from a panel."""
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set(color="#cccccc", linewidth=0.8)


def _label_columns(axes: Axes, tokens: Sequence[str], cell: float) -> None:
    """Write every token at its column, one of several characters from bottom to top."""
    labels = _label_ticks(axes.xaxis, tokens, cell)
    for tick, label in zip(axes.get_xticklabels(), labels, strict=True):
        if len(label) > 2:
            tick.set_rotation(90)


def _label_ticks(axis: Axis, tokens: Sequence[str], cell: float) -> list[str]:
    """Set the ticks of `axis`, marks and special tokens in grey; returns the labels."""
    labels = [token_label(token) for token in tokens]
    size = max(2.0, min(9.0, 72 * cell * 0.62))  # points
    families = [family for family, _ in _fonts()]
    axis.set_ticks(range(len(labels)), labels, fontsize=size, family=families, parse_math=False)
    for tick, token, label in zip(axis.get_ticklabels(), tokens, labels, strict=True):
        is_mark = _is_special(token) or not token.strip() or label.startswith("U+")
        tick.set_color(_FAINT if is_mark else INK)
    return labels


def _is_special(token: str) -> bool:
    return len(token) > 2 and token[0] == "<" and token[-1] == ">"


def token_label(token: str) -> str:
    """Return `token` as it is written beside a picture: every character of it can be seen."""
    return "".join(_visible(character) for character in token)


def _visible(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    category = unicodedata.category(character)
    if category in _INVISIBLE or not _has_glyph(character):
        return f"U+{ord(character):04X}"
    # A combining character alone sits on a dotted circle.
    return "\u25cc" + character if category in ("Mn", "Me") else character


@lru_cache(maxsize=1)
def _fonts() -> tuple[tuple[str, str], ...]:
    """Find family and file of the fonts to draw with: matplotlib's own, then those installed."""
    from matplotlib import font_manager

    installed = {font.name: font.fname for font in reversed(font_manager.fontManager.ttflist)}
    names = [name for name in _FALLBACK_FONTS if name in installed]
    default = font_manager.findfont("DejaVu Sans")
    return (("DejaVu Sans", default), *((name, installed[name]) for name in names))


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    from matplotlib import font_manager

    return any(font_manager.get_font(path).get_char_index(ord(character)) for _, path in _fonts())


def _separate_words(axes: Axes, source_tokens: Sequence[str], target_tokens: Sequence[str]) -> None:
    """Draw thin lines through the blanks between words, to lead the eye to the labels."""
    for tokens, draw in ((source_tokens, axes.axvline), (target_tokens, axes.axhline)):
        for index, token in enumerate(tokens):
            if token == " ":
                draw(index, color=BLUE, alpha=0.15, linewidth=0.6)


def _add_color_bar(
    figure: Figure, axes: Axes, image: AxesImage, label: str, size: tuple[float, float]
) -> None:
    """Draw a bar of at most 2.5 inches beside the upper end of axes of `size` (inches)."""
    width, height = size
    share = min(1.0, 2.5 / height)
    beside = axes.inset_axes((1 + 0.15 / width, 1 - share, 0.14 / width, share))
    bar = figure.colorbar(image, cax=beside)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.set_label(label, fontsize=9, color=_FAINT)
