"""A text becomes tokens by where it stands, for tokenizers of every kind: what opens a text stands at a sequence's
beginning, once, and nowhere else; and whoever encodes the same prompt gets the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.actors.engine.requests import Completion
from rollcall.actors.language.conversations import Conversations, opening
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.jsonl import Jsonl, JsonlConfig
from rollcall.actors.tasks.text_task import Row, Segment, TextStep
from rollcall.deploy.kinds.language.warm_start import demonstration
from rollcall.reward_service.models.text_encoder import TextEncoder
from rollcall.reward_service.models.text_tokens import TextTokens
from rollcall.reward_service.protocol import Message
from tests.needs import require_module

transformers = require_module("transformers")

BOS, EOS = 0, 1
SPECIAL = ["<s>", "</s>", "<unk>"]
TEXTS = [f"What is {a} plus {b}? It is {a + b}." for a in range(30) for b in range(30)]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


def _trained(core: Any, trainer: Any) -> Any:
    core.train_from_iterator(TEXTS, trainer)
    return core


def byte_level(*, bos: bool = False, prefix: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return with_bos(_trained(core, trainer)) if bos else _trained(core, trainer)


def sentence_piece(scheme: str) -> Any:
    """As those of Mistral (first) and of the early Llamas (always, or a normalizer that prepends)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if scheme == "prepend" else scheme)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _trained(core, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False))
    if scheme == "prepend":
        core.pre_tokenizer = None
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return with_bos(core)


def unigram() -> Any:
    """As T5's: nothing begins a text, and something ends it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=True, right=True)])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    _trained(core, trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return core


def word_piece() -> Any:
    """As BERT's: a token at each end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    _trained(core, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False))
    template = "<s> $A </s>"
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return core


def characters() -> Any:
    """One token a character, of digits alone: it has no token for a letter, not even for one that it does not know."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    core = Tokenizer(models.BPE({word: i for i, word in enumerate([*SPECIAL, *"0123456789+=;"])}, []))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return with_bos(core)


def with_bos(core: Any) -> Any:
    from tokenizers import processors

    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return core


# (the tokenizer, what a prompt begins with, what ends a text)
KINDS: dict[str, tuple[Callable[[], Any], list[int], list[int]]] = {
    "byte-level": (byte_level, [], [EOS]),
    "byte-level with BOS": (lambda: byte_level(bos=True), [BOS], [EOS]),
    "byte-level with a space": (lambda: byte_level(prefix=True), [], [EOS]),
    "SentencePiece, first": (lambda: sentence_piece("first"), [BOS], [EOS]),
    "SentencePiece, always": (lambda: sentence_piece("always"), [BOS], [EOS]),
    "SentencePiece, prepend": (lambda: sentence_piece("prepend"), [BOS], [EOS]),
    "Unigram": (unigram, [], [EOS]),
    "WordPiece": (word_piece, [BOS], [EOS]),
    "characters": (characters, [BOS], [EOS]),
}
SPACED = ["byte-level with a space", *(name for name in KINDS if name.startswith(("Sentence", "Unigram")))]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, (make, _, _) in KINDS.items():
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=make(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_begins_as_its_tokenizer_begins_a_text_whoever_encodes_it(
    directories: dict[str, Path], name: str
) -> None:
    """Generation and evaluation (codec, opening), imitation, and reward models and direct methods (encoder) alike."""
    _, before, after = KINDS[name]
    codec, encoder = TextCodec(directories[name]), TextEncoder(directories[name])
    task, row = Jsonl(JsonlConfig(path=Path("nowhere.jsonl"))), Row("12+4=", "16", "here")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories[name])
    whole = tokenizer.encode(row.prompt)
    expected = whole[:-1] if whole[-1] == EOS else whole  # a prompt is continued: nothing ends it
    assert expected[: len(before)] == before
    assert expected[len(before)] not in (BOS, EOS)
    assert codec.prompt(row.prompt) == expected
    assert opening(task, codec, row) == expected
    assert demonstration(task, codec, row).token_ids[: len(expected)].tolist() == expected
    assert encoder.prompt(row.prompt) == expected
    assert encoder.response("16")[-1:] == after
    assert codec.prompt("") == before


@pytest.mark.parametrize("name", [name for name, (_, before, _) in KINDS.items() if before])
def test_a_prompt_that_names_its_bos_token_itself_has_one(directories: dict[str, Path], name: str) -> None:
    """As one that was put through a chat template when the file was made."""
    codec = TextCodec(directories[name])
    assert codec.prompt("<s>12+4=").count(BOS) == TextEncoder(directories[name]).prompt("<s>12+4=").count(BOS) == 1


@pytest.mark.parametrize("name", [name for name in KINDS if name != "characters"])
def test_a_chat_template_has_its_bos_token_and_gets_no_second_one(directories: dict[str, Path], name: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories[name])
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "12+4="}], return_dict=False)
    assert expected.count(BOS) == 1
    assert TextCodec(directories[name], chat=True).prompt("12+4=") == expected
    assert TextEncoder(directories[name]).prompt([Message(role="user", content="12+4=")]) == expected


@pytest.mark.parametrize("name", KINDS)
def test_text_in_the_middle_comes_back_as_it_was_and_begins_with_nothing_else(
    directories: dict[str, Path], name: str
) -> None:
    codec = TextCodec(directories[name])
    spaces = name not in ("WordPiece", "characters")  # those two have no token for a space
    for text in ("4", "16", "0", *((" 4", "is 4", " 12 plus  4 ") if spaces else ())):
        tokens = codec.encode(text)
        assert BOS not in tokens and EOS not in tokens
        if name != "WordPiece":  # which says a space between any two words
            assert codec.decode(tokens) == text
    assert codec.encode("") == []


@pytest.mark.parametrize("name", SPACED)
def test_the_pieces_of_a_text_are_tokenised_as_in_the_whole(directories: dict[str, Path], name: str) -> None:
    """Where the tokenizer itself would cut: at a seam without a space, no space is put in; one that is there stays."""
    codec = TextCodec(directories[name])
    for prompt, answer in (("?", "4"), ("What is 3?", " 4"), ("It", " is 7."), ("7", "9")):
        assert codec.prompt(prompt) + codec.encode(answer) == codec.prompt(prompt + answer), (prompt, answer)


@dataclass
class Sevens:
    """An engine that says 7 at every turn."""

    codec: TextCodec
    max_model_len: int = 64
    version: int = 0
    waiting: list[str] = field(default_factory=list)

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting)

    def add(self, request_id: str, prompt: Sequence[int], **settings: Any) -> None:
        self.waiting.append(request_id)

    def step(self) -> list[Completion]:
        tokens = np.array([*self.codec.encode("7"), EOS], np.int32)
        logprobs = np.zeros(len(tokens), np.float32)
        return [Completion(self.waiting.pop(0), tokens, logprobs, ((0, len(tokens), 0),), "stop")]

    def abort(self, request_ids: Sequence[str]) -> None: ...


class Adder:
    """An env that replies with a number to whatever is said, once."""

    def __init__(self) -> None:
        self.turns = 0

    def reset(self) -> str:
        return "1+2="

    def step(self, text: str) -> TextStep:
        self.turns += 1
        return TextStep("" if self.turns == 2 else "4", 0.0, terminated=self.turns == 2, correct=False, parsed=True)


class AdderTask:
    chat = False

    def environment(self, row: Row) -> Adder:
        return Adder()

    def demonstration(self, row: Row) -> list[Segment]:
        return [Segment("1+2=", by_model=False), Segment("7", by_model=True), Segment("4", by_model=False)]


@pytest.mark.parametrize("name", KINDS)
def test_a_tools_reply_and_what_is_imitated_begin_with_no_space_and_no_bos_token(
    directories: dict[str, Path], name: str
) -> None:
    codec, row = TextCodec(directories[name]), Row("1+2=", "7", "here")
    task: Any = AdderTask()
    conversations = Conversations(Sevens(codec), task, codec, max_tokens=8)
    conversations.begin("it", row, seed=0)
    finished: list[Any] = []
    while conversations.num_running:
        finished += conversations.advance()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories[name])
    seven, four = tokenizer.convert_tokens_to_ids(["7", "4"])
    expected = [*codec.prompt("1+2="), seven, EOS, four]
    assert finished[0].token_ids == [*expected, seven, EOS]
    assert demonstration(task, codec, row).token_ids.tolist() == expected


def test_a_tokenizer_that_does_not_say_how_it_works_is_asked_with_a_text_before(directories: dict[str, Path]) -> None:
    """One that is written in Python, say."""

    class Plain:
        def __init__(self) -> None:
            self._own = transformers.AutoTokenizer.from_pretrained(directories["SentencePiece, first"])
            self.all_special_tokens = self._own.all_special_tokens
            self.encode, self.decode, self.get_vocab = self._own.encode, self._own.decode, self._own.get_vocab

    plain, codec = TextTokens(Plain()), TextCodec(directories["SentencePiece, first"])
    for text in ("4", " 4", "is 4", ""):
        assert plain.inside(text) == codec.encode(text)
    assert plain.fresh("12+4=") == codec.prompt("12+4=")
