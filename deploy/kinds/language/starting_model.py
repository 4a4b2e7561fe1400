"""The language model that a run on preferences begins with: a directory that is given, or a tiny one that the run
makes, with a tokenizer for the texts at hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.kinds.language.model_directory import model_source
from rollcall.learners.models.language.byte_tokenizer import byte_tokenizer
from rollcall.learners.models.language.tiny_model import character_tokenizer, write_tiny_model
from rollcall.reward_service.models.word_model import write_words_model
from rollcall.reward_service.preferences.files import Preference, PreferencePair, SegmentPair

START = "start"  # of a run directory: the tiny model that was made for it

# Of the tiny models: the form of the HH data, so that its texts and messages look alike.
_TEMPLATE = (
    "{% for m in messages %}{{ '\n\n' + {'user': 'Human', 'assistant': 'Assistant'}.get(m['role'], m['role']) + ': ' "
    "+ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def given_model(
    name: str,
    tiny: Mapping[str, Any],
    preferences: Sequence[Preference],
    directory: Path,
    *,
    max_tokens: int,
    seed: int,
) -> Path:
    """The directory of the model called `name`; `tiny` and, for rewards, `words`: made at `directory`, unless it is
    there already.

    `tiny` settings are write_tiny_model's, and `vocab_size`: pieces of bytes, in place of the characters found.

    Raises:
      BadInput: when there is no such model, or the settings do not make one.
    """
    if name == "words":
        return _of_words(preferences, directory, max_tokens=max_tokens)
    if name != "tiny":
        source = model_source(Path(name))
        return source if source == Path(name) else _fetched(name)
    if directory.exists():
        return directory
    settings = {"max_position_embeddings": max_tokens, **tiny}
    vocab_size = settings.pop("vocab_size", None)
    aside = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if vocab_size is None:
            tokenizer = character_tokenizer("".join(sorted({c for text in _texts(preferences) for c in text})))
        else:
            tokenizer = byte_tokenizer(_texts(preferences), vocab_size=vocab_size)
        tokenizer.chat_template = _TEMPLATE
        write_tiny_model(aside, tokenizer=tokenizer, seed=seed, **settings)
    except (TypeError, ValueError) as error:
        raise BadInput(f"tiny = {dict(tiny)}: makes no model: {error}") from None
    aside.replace(directory)
    return directory


def _of_words(preferences: Sequence[Preference], directory: Path, *, max_tokens: int) -> Path:
    """A model that counts words, begun with the best and the other responses of comparisons."""
    if directory.exists():
        return directory
    better: list[str] = []
    worse: list[str] = []
    for item in preferences:
        assert not isinstance(item, SegmentPair), "texts alone"
        if isinstance(item, PreferencePair):
            sides = ([], []) if item.tie else ([item.chosen], [item.rejected])
        else:
            ranked = list(zip(item.responses, item.ranks, strict=True))
            sides = ([t for t, rank in ranked if rank == 0], [t for t, rank in ranked if rank > 0])
        better += sides[0]
        worse += sides[1]
    aside = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    write_words_model(aside, better, worse, max_tokens=max_tokens, template=_TEMPLATE)
    aside.replace(directory)
    return directory


def _fetched(name: str) -> Path:
    """A model known by its name on the Hugging Face hub, with its weights."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"model {name!r}: cannot be fetched: {first}") from None


def _texts(preferences: Sequence[Preference]) -> Iterator[str]:
    for item in preferences:
        assert not isinstance(item, SegmentPair), "texts alone"
        if isinstance(item.prompt, str):
            yield item.prompt
        else:
            yield "\n\nHuman: \n\nAssistant:"
            yield from (message.content for message in item.prompt)
        yield from (item.chosen, item.rejected) if isinstance(item, PreferencePair) else item.responses
