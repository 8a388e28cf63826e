"""The end of a run, for its readers: pictures, the model card, the push."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hf_qrnn.data.flags import typed
from hf_qrnn.data.json_files import read_text
from hf_qrnn.data.translations import one_line
from hf_qrnn.hub.push import PushResult, check_access, push
from hf_qrnn.translation.plots import attention_figure, hidden_states_figure, save_figure
from hf_qrnn.translation.states import classifier_states, load_classifier
from hf_qrnn.translation.translator import Translator

from .cards import model_card
from .options import PublishOptions
from .run_folder import write_lines, writing

logger = logging.getLogger(__name__)
_TYPED = {"private": "hub_private", "revision": "hub_revision", "tag": "hub_tag"}


def check_publishing(options: PublishOptions, *, is_resumed: bool = False) -> None:
    """Find out before training whether the run may push after it; make the repository.

    Args:
        options: The run's options.
        is_resumed: Whether the run may have been pushed already, and its commit named.

    Raises:
        ValueError: If a name is none or taken.
        HubError: If the Hub refuses or cannot be reached.
    """
    if options.push_to_hub and options.hub_model_id is not None:
        with typed(_TYPED):
            check_access(
                options.hub_model_id,
                private=options.hub_private,
                revision=options.hub_revision,
                tag=options.hub_tag,
                is_to_come=not is_resumed,
            )


def write_card(
    folder: Path,
    *,
    title: str | None = None,
    about: str | None = None,
    samples: Sequence[tuple[str, str]] = (),
) -> None:
    """Write README.md into a run's folder.

    Args:
        folder: A run's folder with its best model.
        title: Heading; None is the run's own.
        about: Text on data and limits; None leaves it out.
        samples: Inputs and what the model makes of them.
    """
    card = model_card(folder, title=title, about=about, samples=samples)
    write_lines(folder / "README.md", card.rstrip("\n").split("\n"))


def translate_samples(
    translator: Translator, sources: Sequence[str], num_beams: int, language: str | None = None
) -> list[tuple[str, str]]:
    """Translate sources as samples for `write_card`."""
    found = translator.translate(sources, language=language, num_beams=num_beams)
    return [
        (source, one_line(best.text)) for source, (best, *_) in zip(sources, found, strict=True)
    ]


def draw_attention(
    translator: Translator,
    sentence: str,
    folder: Path,
    *,
    language: str | None = None,
    num_beams: int = 1,
) -> None:
    """Draw attention.png into a folder, of the sentence's translation."""
    found = translator.attention(sentence, language=language, num_beams=num_beams)
    figure = attention_figure(found.source_tokens, found.target_tokens, found.weights)
    path = folder / "attention.png"
    with writing(path):
        save_figure(figure, path)


def draw_states(folder: Path, text: str) -> None:
    """Draw states.png into a classifier's folder, of its states over a text."""
    found = classifier_states(*load_classifier(str(folder)), text)
    path = folder / "states.png"
    with writing(path):
        save_figure(hidden_states_figure(found.tokens, found.states), path)


def publish_run(folder: Path, options: PublishOptions) -> PushResult | None:
    """Write the card of a finished run, and push the run where its options say so.

    Args:
        folder: The run's folder, pictures included.
        options: The run's options.

    Returns:
        What the push did, or None without one.

    Raises:
        HubError: If the Hub refuses or cannot be reached; the folder is complete then, and
            `hf-qrnn push` goes on from it.
    """
    about = None if options.card_about is None else read_text(Path(options.card_about)).strip()
    write_card(folder, about=about)
    if not options.push_to_hub or options.hub_model_id is None:
        return None
    with typed(_TYPED):
        pushed = push(
            folder,
            options.hub_model_id,
            private=options.hub_private,
            revision=options.hub_revision,
            tag=options.hub_tag,
        )
    logger.info("pushed to %s", pushed.url)
    return pushed
