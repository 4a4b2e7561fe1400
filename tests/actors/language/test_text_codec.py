"""Tokens and text by a model's own tokenizer; and directories whose tokenizer will not do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcall.actors.language.text_codec import TextCodec
from rollcall.cluster.errors import BadInput

ALPHABET = "+0123456789;=ac"
EOS = 1


def changed(directory: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a model's tokenizer with other settings; None takes one away."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(directory / name, folder)
    path = folder / "tokenizer_config.json"
    values = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return folder


@pytest.fixture
def directory(directories: dict[str, Path]) -> Path:
    return directories["tied"]


def test_text_comes_back_as_it_was(codec: TextCodec) -> None:
    @given(st.text(alphabet=ALPHABET))
    def check(text: str) -> None:
        assert codec.decode(codec.encode(text)) == text

    check()


def test_tokens_of_pieces_are_the_pieces_of_tokens_and_nothing_is_added_at_their_ends(codec: TextCodec) -> None:
    assert codec.encode("1+2=") + codec.encode("c1+2") == codec.encode("1+2=c1+2")
    assert len(codec.encode("1+2=")) == 4
    assert codec.encode("") == []


def test_the_text_of_a_completion_does_not_show_its_end(codec: TextCodec) -> None:
    assert codec.eos_token_id == EOS
    assert codec.decode([*codec.encode("46"), EOS]) == "46"
    assert codec.decode([EOS]) == ""


def test_without_chat_a_prompt_is_its_text(codec: TextCodec) -> None:
    assert codec.prompt("12+34=") == codec.encode("12+34=")


def test_with_chat_a_prompt_goes_through_the_template_and_asks_for_an_answer(directory: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}c{{ m['content'] }};{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    chat = TextCodec(changed(directory, tmp_path, chat_template=template), chat=True)
    assert chat.prompt("1+2=") == chat.encode("c1+2=;a")
    assert chat.encode("1+2=") == TextCodec(tmp_path).encode("1+2=")  # only prompts go through it


def test_a_template_may_add_special_tokens_and_they_are_tokens(directory: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}"
    chat = TextCodec(changed(directory, tmp_path, chat_template=template), chat=True)
    assert chat.prompt("12") == [*chat.encode("12"), EOS]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages[5]['content'] + 1 }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_is_one_line_with_its_own_words(
    directory: Path, tmp_path: Path, template: str, said: str
) -> None:
    chat = TextCodec(changed(directory, tmp_path, chat_template=template), chat=True)
    with pytest.raises(BadInput, match="its chat template fails on the prompt '12'") as caught:
        chat.prompt("12")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("fix the template, or set task.chat=false")


def test_a_directory_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tokenizer can be loaded from it") as caught:
        TextCodec(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"^{tmp_path}/typo: there is no such directory$"):
        TextCodec(tmp_path / "typo")


def test_a_task_that_asks_for_a_chat_template_is_refused_one_that_is_not_there(directory: Path) -> None:
    with pytest.raises(BadInput, match=r"has no chat template, and the task asks for one: set task\.chat=false"):
        TextCodec(directory, chat=True)


def test_a_tokenizer_without_an_end_of_sequence_token_is_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="names no end-of-sequence token"):
        TextCodec(changed(directory, tmp_path, eos_token=None))


def test_without_transformers_the_extra_to_install_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match=r"pip install 'rollcall-rl\[lm-cpu\]'"):
        TextCodec(directory)
