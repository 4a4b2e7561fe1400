"""Text to tokens and back, by a model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.models.text_tokens import TextTokens


class TextCodec:
    """The tokenizer of a model directory."""

    def __init__(self, model_directory: Path, *, chat: bool = False) -> None:
        """Raises BadInput: when the directory has no tokenizer, or `chat` asks for a template that it does not have."""
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise BadInput(
                "language tasks need transformers: pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu])"
            ) from None
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model_directory))
        except Exception as error:  # whatever files of somebody's make their classes raise
            first = " ".join(str(error).split())[:300]
            raise BadInput(f"{model_directory}: no tokenizer can be loaded from it: {first}") from None
        if chat and not self._tokenizer.chat_template:
            raise BadInput(
                f"{model_directory}: its tokenizer has no chat template, and the task asks for one: set task.chat=false"
            )
        if self._tokenizer.eos_token_id is None:
            raise BadInput(
                f"{model_directory}: its tokenizer names no end-of-sequence token: completions would not end"
            )
        self._directory = model_directory
        self._tokens = TextTokens(self._tokenizer)
        self._chat = chat
        self.eos_token_id = int(self._tokenizer.eos_token_id)

    def prompt(self, text: str) -> list[int]:
        """The tokens that a completion follows: as the tokenizer begins a text, or through the chat template if there
        is one to use."""
        if not self._chat:
            return self._tokens.fresh(text)
        messages = [{"role": "user", "content": text}]
        try:
            encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # whatever a template of somebody's raises
            first = f"{type(error).__name__}: {(str(error).strip() or 'no word').splitlines()[0]}"
            raise BadInput(
                f"{self._directory}: its chat template fails on the prompt {text[:60]!r} ({first}): "
                "mend the template, or set task.chat=false"
            ) from error
        return self._tokens.rendered(encoded)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in the middle of a sequence: nothing is added at its ends."""
        return self._tokens.inside(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens in the middle of a sequence, without the end-of-sequence token and other special ones."""
        return self._tokens.text(list(token_ids))
