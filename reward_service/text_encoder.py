"""A prompt and a response as one sequence of tokens, the same for training a reward model and for scoring with it:
prompt tokens, response tokens, end. Nothing is tokenised across the seam. Must never know what models make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.protocol import Message

_PROBE = "a"
_SAMPLE = "The quick brown fox jumps over the lazy dog, and 12 of them say: well done!"


class TextEncoder:
    """The tokenizer of a model directory."""

    def __init__(self, directory: Path) -> None:
        """Raises BadInput: when the directory has no tokenizer that can be loaded."""
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise BadInput("texts need transformers: pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu])") from None
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadInput(f"{directory}: no tokenizer can be loaded from it: {first}") from None
        bare = self.encode(_PROBE)
        whole = list(self._tokenizer.encode(_PROBE, add_special_tokens=True))
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        self._before = whole[:start]  # what this tokenizer begins and ends a text with
        self._after = whole[start + len(bare) :]
        if not self._after and self._tokenizer.eos_token_id is not None:
            self._after = [int(self._tokenizer.eos_token_id)]
        pad = self._tokenizer.pad_token_id
        self.pad_token_id = int(pad if pad is not None else 0)
        self.characters_per_token = len(_SAMPLE) / max(1, len(self.encode(_SAMPLE)))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that stands somewhere in a sequence: nothing is added at its ends."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """A prompt's tokens: messages through the chat template, up to where the assistant's answer begins.

        Raises:
          ValueError: for messages, when the tokenizer has no chat template, or refuses them.
        """
        if isinstance(prompt, str):
            return [*self._before, *self.encode(prompt)]
        if not self._tokenizer.chat_template:
            raise ValueError("messages need a chat template, which this model's tokenizer does not have: give a prompt")
        turns = [message.model_dump() for message in prompt]
        try:
            text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # whatever a template raises: TemplateError, or a TypeError inside it
            raise ValueError(f"the model's chat template refuses the messages: {error}") from None
        return self.encode(text)

    def response(self, text: str) -> list[int]:
        """A response's tokens and the end of the sequence."""
        return [*self.encode(text), *self._after]
