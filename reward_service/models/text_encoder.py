"""A prompt and a response as one sequence of tokens, the same for training a reward model and for scoring with it:
prompt tokens, response tokens, end. Nothing is tokenised across the seam."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.model_names import missing_directory
from rollcall.reward_service.models.text_tokens import TextTokens
from rollcall.reward_service.protocol import Message

_SAMPLE = "The quick brown fox jumps over the lazy dog, and 12 of them say: well done!"


class TextEncoder:
    """The tokenizer of a model directory."""

    def __init__(self, directory: Path) -> None:
        """Raises BadInput: when the directory has no tokenizer that can be loaded."""
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise BadInput("texts need transformers: pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu])") from None
        if missing := missing_directory(directory):
            raise BadInput(f"{directory}: {missing}")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadInput(f"{directory}: no tokenizer can be loaded from it: {first}") from None
        self._tokens = TextTokens(self._tokenizer)
        self._after = self._tokens.after
        if not self._after and self._tokenizer.eos_token_id is not None:
            self._after = [int(self._tokenizer.eos_token_id)]
        pad = self._tokenizer.pad_token_id
        self.pad_token_id = int(pad if pad is not None else 0)
        self.characters_per_token = len(_SAMPLE) / max(1, len(self._tokens.inside(_SAMPLE)))

    def prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """A prompt's tokens: messages through the chat template, up to where the assistant's answer begins.

        Raises:
          ValueError: for messages, when the tokenizer has no chat template, or refuses them.
        """
        if isinstance(prompt, str):
            return self._tokens.fresh(prompt)
        if not self._tokenizer.chat_template:
            raise ValueError("messages need a chat template, which this model's tokenizer does not have: give a prompt")
        turns = [message.model_dump() for message in prompt]
        try:
            text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # whatever a template raises: TemplateError, or a TypeError inside it
            raise ValueError(f"the model's chat template refuses the messages: {error}") from None
        return self._tokens.rendered(text)

    def response(self, text: str) -> list[int]:
        """A response's tokens and the end of the sequence."""
        return [*self._tokens.inside(text), *self._after]
