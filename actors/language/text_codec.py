"""Text to tokens and back, by a model's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.model_names import missing_directory
from rollcall.reward_service.models.text_tokens import TextTokens


class TextCodec:
    """The tokenizer of a model directory."""

    def __init__(
        self, model_directory: Path, *, chat: bool = False, template_kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """`template_kwargs`: what else the chat template is told.

        Raises:
          BadInput: when the directory has no tokenizer, or `chat` asks for a template that it does not have.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise BadInput(
                "language tasks need transformers: pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu])"
            ) from None
        if missing := missing_directory(model_directory):
            raise BadInput(f"{model_directory}: {missing}")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model_directory))
        except Exception as error:  # whatever files of somebody's make their classes raise
            first = " ".join(str(error).split())[:300]
            what = "no tokenizer can be loaded from it"
            if not Path(model_directory).is_dir():
                what = "neither a directory here nor a model to be had from the Hugging Face hub"
            raise BadInput(f"{model_directory}: {what}: {first}") from None
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
        self._template_kwargs = dict(template_kwargs)
        self.eos_token_id = int(self._tokenizer.eos_token_id)

    def prompt(self, asked: str | Sequence[Mapping[str, Any]], *, tools: Any = None) -> list[int]:
        """The tokens that a completion follows: as the tokenizer begins a text, or through the chat template if there
        is one to use. `asked`: a text, which a chat template gets as a user's message; or messages. `tools`: that the
        template tells of."""
        if not self._chat:
            assert isinstance(asked, str), "messages are for chat"
            return self._tokens.fresh(asked)
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        return self._tokens.rendered(self._rendered(messages, tools=tools, to_be_answered=True))

    def conversation(self, messages: Sequence[Mapping[str, Any]], *, tools: Any = None) -> list[tuple[list[int], bool]]:
        """A whole chat in pieces: (tokens, whether they are the assistant's). Each of its turns is one that a prompt of
        the messages before would be followed by; where a template writes earlier turns otherwise once there are later
        ones (it leaves their thoughts out, say), only the last one is."""
        whole = self._rendered(messages, tools=tools, to_be_answered=False)
        turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        pieces: list[tuple[str, bool]] = []
        done = 0
        for place in turns:
            before = self._rendered(messages[:place], tools=tools, to_be_answered=True)
            after = self._rendered(messages[: place + 1], tools=tools, to_be_answered=False)
            if not (whole.startswith(after) and after.startswith(before)) or len(before) < done:
                if place == turns[-1]:
                    raise BadInput(
                        f"{self._directory}: its chat template does not write the assistant's turn after its prompt: "
                        "no turn can be told from the rest"
                    )
                continue
            said, rest = self._until_end(after[len(before) :])
            pieces += [(whole[done : len(before)], False), (said, True)]
            done = len(after) - len(rest)
        found = []
        for number, (text, own) in enumerate(pieces):
            token_ids = self._tokens.inside(text) if number else self._tokens.rendered(text)
            if own and token_ids[-1:] != [self.eos_token_id]:  # a template that ends turns otherwise
                token_ids = [*token_ids, self.eos_token_id]
            found.append((token_ids, own))
        return found

    def _until_end(self, text: str) -> tuple[str, str]:
        """(a turn with its end-of-sequence token, what the template puts behind it)"""
        end = str(self._tokenizer.eos_token)
        at = text.find(end)
        if at < 0:
            return text.rstrip("\n"), text[len(text.rstrip("\n")) :]
        return text[: at + len(end)], text[at + len(end) :]

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, tools: Any, to_be_answered: bool) -> str:
        told = {**self._template_kwargs, **({} if not tools else {"tools": tools})}
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    add_generation_prompt=to_be_answered,
                    tokenize=False,
                    **told,
                )
            )
        except Exception as error:  # whatever a template of somebody's raises
            first = f"{type(error).__name__}: {(str(error).strip() or 'no word').splitlines()[0]}"
            shown = str(messages[-1].get("content"))[:60]
            raise BadInput(
                f"{self._directory}: its chat template fails on the prompt {shown!r} ({first}): "
                "fix the template, or set task.chat=false"
            ) from error

    def document(self, text: str) -> list[int]:
        """Tokens of a whole text, which nobody asked for: as the tokenizer begins one, and its end."""
        return [*self._tokens.fresh(text), self.eos_token_id]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in the middle of a sequence: nothing is added at its ends."""
        return self._tokens.inside(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens in the middle of a sequence, without the end-of-sequence token and other special ones."""
        return self._tokens.text(list(token_ids))


def template_kwargs_of(task: object) -> Mapping[str, Any]:
    """What a task's prompts tell the chat template; not every task has some."""
    found: Mapping[str, Any] = getattr(task, "chat_template_kwargs", {})
    return found
