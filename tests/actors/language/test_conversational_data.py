"""Rows that are chats: what the model is shown, what is imitated of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.actors.language.conversations import opening
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.jsonl import Jsonl, JsonlConfig
from rollcall.actors.trajectory_scoring import asked_of
from rollcall.cluster.errors import BadInput
from rollcall.deploy.kinds.language.warm_start import demonstration
from rollcall.learners.models.language.byte_tokenizer import byte_tokenizer
from tests.needs import require

require("transformers")

# ChatML, with tools, thoughts that only the last turn keeps, and what enable_thinking=false adds.
TEMPLATE = (
    "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
    "{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "2+2?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}],
}
TOOL = {"role": "tool", "content": "4"}
ANSWER = {"role": "assistant", "content": "4"}


def model(folder: Path, template: str = TEMPLATE) -> Path:
    tokenizer: Any = byte_tokenizer(["2+2?"], vocab_size=300)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder / "model"))
    return folder / "model"


def task(folder: Path, *rows: dict[str, Any], **settings: Any) -> Jsonl:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Jsonl(JsonlConfig(path=path, **{"chat": True, **settings}))


def shown(made: Jsonl, codec: TextCodec) -> str:
    return whole(codec, opening(made, codec, made.rows("train")[0]))


def whole(codec: TextCodec, tokens: list[int]) -> str:
    return str(codec._tokenizer.decode(tokens, skip_special_tokens=False))


END = "<|endoftext|>"


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    made = TextCodec(model(tmp_path), chat=True)
    global END
    END = str(made._tokenizer.eos_token)
    return made


def test_the_model_is_shown_all_messages_but_its_own_reply(tmp_path: Path, codec: TextCodec) -> None:
    made = task(tmp_path, {"messages": [SYSTEM, USER, ANSWER]})
    assert shown(made, codec) == f"<|system|>Be short.{END}\n<|user|>2+2?{END}\n<|assistant|>"
    (row,) = made.rows("train")
    assert row.answer == "4" and row.prompt == "2+2?"
    assert made.judge(row, " 4 ").correct and not made.judge(row, "5").correct
    asked = asked_of(made, row)
    assert [(m.role, m.content) for m in asked if not isinstance(m, str)] == [("system", "Be short."), ("user", "2+2?")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "answer": "4"},
        {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
        {"messages": [SYSTEM, USER], "answer": 4},
        {"messages": [SYSTEM, USER, ANSWER], "answer": None},
    ],
    ids=["a prompt of messages", "as TRL has it", "an answer that is a number", "a column that other rows have"],
)
def test_other_forms_of_the_same_row_are_the_same(tmp_path: Path, codec: TextCodec, row: dict[str, Any]) -> None:
    made = task(tmp_path, row)
    assert shown(made, codec) == f"<|system|>Be short.{END}\n<|user|>2+2?{END}\n<|assistant|>"
    (found,) = made.rows("train")
    assert found.answer == "4" and str(found.columns["answer"]) == "4"


def test_tool_calls_and_tools_reach_the_template(tmp_path: Path, codec: TextCodec) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    made = task(tmp_path, {"messages": [USER, CALL, TOOL, ANSWER], "tools": tools})
    text = shown(made, codec)
    assert text.startswith("<|tools|>[{") and '"add"' in text
    assert f'<|assistant|><call>add({{"a": 2, "b": 2}}){END}\n<|tool|>4{END}\n<|assistant|>' in text


def test_every_turn_of_the_assistants_is_imitated_and_nothing_else(tmp_path: Path, codec: TextCodec) -> None:
    made = task(tmp_path, {"messages": [SYSTEM, USER, CALL, TOOL, ANSWER]})
    found = demonstration(made, codec, made.rows("train")[0])
    tokens, own = found.token_ids, found.imitated
    rendered = codec._tokenizer.apply_chat_template([SYSTEM, USER, CALL, TOOL, ANSWER], tokenize=False)
    assert whole(codec, tokens.tolist()) == rendered.rstrip("\n")
    borders = np.flatnonzero(np.diff(own)) + 1
    turns = zip(np.split(tokens, borders), np.split(own, borders), strict=True)
    imitated = [whole(codec, turn.tolist()) for turn, mine in turns if mine[0]]
    assert imitated == [f'<call>add({{"a": 2, "b": 2}}){END}', f"4{END}"]
    # What the model is shown before its last turn is, token by token, what comes before it here.
    asked = opening(made, codec, made.rows("train")[0])
    assert tokens[: len(asked)].tolist() == asked


def test_a_template_that_rewrites_earlier_turns_has_its_last_one_imitated(tmp_path: Path) -> None:
    forgetful = TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('~')[-1] }}")
    codec = TextCodec(model(tmp_path, forgetful), chat=True)
    thought = {"role": "assistant", "content": "hm~3"}
    made = task(tmp_path, {"messages": [USER, thought, USER, {"role": "assistant", "content": "oh~4"}]})
    found = demonstration(made, codec, made.rows("train")[0])
    text = whole(codec, found.token_ids[found.imitated].tolist())
    assert text == f"oh~4{codec._tokenizer.eos_token}"
    assert "hm~" not in whole(codec, found.token_ids.tolist())


def test_a_system_prompt_is_a_system_message_of_a_chat(tmp_path: Path, codec: TextCodec) -> None:
    row = {"prompt": "2+2?", "answer": "4"}
    expected = f"<|system|>Be short.{END}\n<|user|>2+2?{END}\n<|assistant|>"
    assert shown(task(tmp_path, row, system_prompt="Be short."), codec) == expected
    as_text = task(tmp_path, row, system_prompt="Be short.", system_prompt_as="text")
    assert shown(as_text, codec) == f"<|user|>Be short.\n\n2+2?{END}\n<|assistant|>"
    own = task(tmp_path, {"messages": [SYSTEM, USER, ANSWER]}, system_prompt="Be long.")
    assert shown(own, codec) == expected
    plain = task(tmp_path, row, system_prompt="Be short.", chat=False)
    assert plain.rows("train")[0].prompt == "Be short.\n\n2+2?"


def test_the_template_is_told_what_the_recipe_says(tmp_path: Path) -> None:
    made = task(tmp_path, {"messages": [USER, ANSWER]}, chat_template_kwargs={"enable_thinking": False})
    codec = TextCodec(model(tmp_path), chat=True, template_kwargs=made.chat_template_kwargs)
    assert shown(made, codec).endswith("<|assistant|><think></think>")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (
            {"messages": [USER, ANSWER]},
            {"chat": False},
            r"rows\.jsonl:1: the prompt is a list of chat messages: set task\.chat=true",
        ),
        ({"messages": [USER]}, {}, "do not end with the assistant's, and there is no column 'answer'"),
        ({"messages": [ANSWER]}, {}, "hold no turn for the model to answer"),
        ({"messages": [{"role": "robot", "content": "x"}, ANSWER]}, {}, "message 0 has no role of system, developer"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, {}, "message 1 has no content that is text"),
        ({"messages": [USER, {**CALL, "tool_calls": "add"}]}, {}, "message 1: tool_calls is no list of objects"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, {}, r"the answer .* is empty"),
        ({"prompt": 3, "answer": "4"}, {}, "is neither text nor a list of messages"),
    ],
)
def test_what_is_no_chat_is_one_line(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        task(tmp_path, row, **settings).rows("train")
    assert "\n" not in str(caught.value)


def test_a_template_that_fails_is_one_line(tmp_path: Path) -> None:
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    codec = TextCodec(model(tmp_path, picky), chat=True)
    with pytest.raises(BadInput, match=r"its chat template fails on the prompt .* \(.*System role not supported"):
        shown(task(tmp_path, {"messages": [SYSTEM, USER, ANSWER]}), codec)


def test_chats_that_end_alike_are_not_the_same_prompt(tmp_path: Path) -> None:
    """Held out are whole chats: two that only share their last question are two."""
    rows = [{"messages": [{"role": "system", "content": str(n)}, USER, ANSWER]} for n in range(6)]
    made = task(tmp_path, *rows, num_eval_rows=2)
    shown_rows = [row.messages[0]["content"] for split in ("train", "eval") for row in made.rows(split)]  # type: ignore[arg-type]
    assert len(made.rows("eval")) == 2 and sorted(shown_rows) == [str(n) for n in range(6)]
