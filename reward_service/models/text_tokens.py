"""The one rule of how a text becomes tokens, by where it stands: at the beginning of a sequence, in the middle of one,
or behind a chat template."""

from __future__ import annotations

import copy
import json
from itertools import islice
from typing import Any

_HEADS = ("=", "a", "\n")  # of texts in the middle, for tokenizers that cannot be told where a text stands


class TextTokens:
    """A tokenizer, and what it puts around a text of its own accord.

    What opens a fresh text (a BOS token; the space that SentencePiece sets before the first word) belongs at the
    beginning of a sequence and nowhere else.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._inner = _without_opening(tokenizer)
        self._before, self.after = self._around()

    def fresh(self, text: str) -> list[int]:
        """Of a text that begins a sequence and will be continued: with what the tokenizer begins a text with, which is
        not said twice where the text itself begins so."""
        tokens = self.rendered(text)
        return tokens if tokens[: len(self._before)] == self._before else [*self._before, *tokens]

    def rendered(self, text: str) -> list[int]:
        """Of a chat template's text, which has what a sequence begins with in it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def inside(self, text: str) -> list[int]:
        """Of a text in the middle of a sequence: an answer, a tool's reply. Nothing is added at its ends."""
        if self._inner is not None:
            return list(self._inner.encode(text, add_special_tokens=False))
        for head in map(self.rendered, _HEADS):
            whole = self.rendered(self._tokenizer.decode(head) + text)
            if head and whole[: len(head)] == head:
                return whole[len(head) :]
        return self.rendered(text)

    def text(self, token_ids: list[int]) -> str:
        """Of tokens in the middle of a sequence, without special ones; inside(text(tokens)) are those tokens, if the
        tokenizer itself would have cut the text there."""
        tokenizer = self._tokenizer if self._inner is None else self._inner
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))

    def _around(self) -> tuple[list[int], list[int]]:
        """(what the tokenizer begins a text with, what it ends one with)"""
        special = set(self._tokenizer.all_special_tokens)
        words = (word for word in self._tokenizer.get_vocab() if word not in special)
        for probe in ("a", "0", *islice(words, 100)):
            bare = self.rendered(probe)
            whole = list(self._tokenizer.encode(probe, add_special_tokens=True))
            for start in range(len(whole) - len(bare) + 1) if bare else ():
                if whole[start : start + len(bare)] == bare:
                    return whole[:start], whole[start + len(bare) :]
        return [], []


def _without_opening(tokenizer: Any) -> Any:
    """The tokenizer as it treats a text that has another before it: no space is put before it, and none that it begins
    with is taken away. None: for one that is not of the `tokenizers` library, and does not say how it works."""
    from tokenizers import Tokenizer

    core = getattr(tokenizer, "_tokenizer", None)
    if not isinstance(core, Tokenizer):
        return None
    try:
        settings = json.loads(core.to_str())
    except Exception:  # parts written in Python cannot be read
        return None
    parts = ("normalizer", "pre_tokenizer", "decoder")
    changed = {name: _opened(settings[name]) for name in parts}
    if changed == {name: settings[name] for name in parts}:
        return tokenizer
    inner = copy.copy(tokenizer)
    inner._tokenizer = Tokenizer.from_str(json.dumps({**settings, **changed}))
    return inner


def _opened(part: Any) -> Any:
    """A part of a tokenizer's description without what it does at the beginning of a text."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "Sequence":
        listed = next(name for name, value in part.items() if isinstance(value, list))
        return {**part, listed: [kept for item in part[listed] if (kept := _opened(item)) is not None]}
    if kind == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if kind == "ByteLevel":
        return {**part, "add_prefix_space": False}
    if kind == "Prepend":
        return None
    if kind == "Strip":
        ends = {"strip_left", "strip_right"} & part.keys()
        return {**part, **(dict.fromkeys(ends, False) if ends else {"start": 0})}
    return part
