"""What a finished run does for its readers: an attention picture, a model card, a push."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hf_qrnn.data.flags import typed
from hf_qrnn.data.json_files import read_text
from hf_qrnn.hub.push import PushResult, check_access, push
from hf_qrnn.translation.plots import attention_figure, save_figure
from hf_qrnn.translation.translator import Translator, load_translator, one_line

from .cards import example_sentence, model_card
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
    sentence: str | None = None,
    title: str | None = None,
    about: str | None = None,
    sources: Sequence[str] = (),
    num_beams: int = 1,
) -> None:
    """Write README.md into a run's folder, with pictures and samples.

    Args:
        folder: A run's folder with its best model.
        sentence: Draw attention.png of its translation; None draws nothing.
        title: Heading; None is the run's own.
        about: Text on data and limits; None leaves it out.
        sources: Sentences to translate now, as samples.
        num_beams: Beams for samples and picture.
    """
    samples = []
    if sentence is not None or sources:
        translator = load_translator(str(folder), device="cpu")
        if sentence is not None:
            _draw_attention(translator, sentence, folder / "attention.png", num_beams)
        found = translator.translate(sources, num_beams=num_beams)
        samples = [
            (source, one_line(best.text)) for source, (best, *_) in zip(sources, found, strict=True)
        ]
    card = model_card(folder, title=title, about=about, samples=samples)
    write_lines(folder / "README.md", card.rstrip("\n").split("\n"))


def _draw_attention(translator: Translator, sentence: str, path: Path, num_beams: int) -> None:
    found = translator.attention(sentence, num_beams=num_beams)
    figure = attention_figure(found.source_tokens, found.target_tokens, found.weights)
    with writing(path):
        save_figure(figure, path)


def publish_run(folder: Path, options: PublishOptions, *, num_beams: int = 1) -> PushResult | None:
    """Write the card of a finished run, and push the run where its options say so.

    The picture is of a sentence of ours: data may not be free to show.

    Args:
        folder: The run's folder.
        options: The run's options.
        num_beams: Beams for the picture.

    Returns:
        What the push did, or None without one.

    Raises:
        HubError: If the Hub refuses or cannot be reached; the folder is complete then, and
            `hf-qrnn push` goes on from it.
    """
    about = None if options.card_about is None else read_text(Path(options.card_about)).strip()
    sentence = example_sentence(folder)
    write_card(folder, sentence=sentence, about=about, num_beams=num_beams)
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
