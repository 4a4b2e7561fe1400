"""A reward model that counts words: a weight for each word and each pair of neighbours, begun as naive Bayes has them
and trained from there (after Wang and Manning, 2012, "Baselines and Bigrams"). From a few thousand texts it learns more
than a network that begins with nothing. It knows no order beyond two words: for a policy it is easily gamed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput

KIND = "rollcall_words"  # not a model_type: transformers knows none of that name, and would warn
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"  # tokens 0, 1 and 2; the words follow
MAX_WORDS = 200_000  # of the vocabulary, the most frequent ones
_SMOOTHING = 1.0  # added to each count
_PRIOR_SCALE = 0.3  # naive Bayes is too sure of itself: neighbouring words are no independent witnesses
_WORD = r"[\p{L}\p{M}\p{N}]+(?:['’][\p{L}]+)*|[^\s\p{L}\p{M}\p{N}]"


@dataclass
class WordsConfig:
    """What stands in config.json, as far as others ask a Hugging Face config for it."""

    vocab_size: int
    num_features: int
    max_position_embeddings: int
    kind: str = KIND
    architectures: list[str] = field(default_factory=lambda: ["WordsModel"])

    def get_text_config(self) -> WordsConfig:
        return self

    def save_pretrained(self, directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Output:
    logits: Tensor  # [b, 1]


class WordsModel(nn.Module):
    """As a Hugging Face sequence classifier with one label is called."""

    def __init__(self, config: WordsConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("keys", torch.full((config.num_features,), torch.iinfo(torch.int64).max))
        self.register_buffer("prior", torch.zeros(config.num_features))
        self.keys: Tensor  # int64 [F], sorted: a word's number, or (number + 1) * vocab_size + the next word's
        self.prior: Tensor  # float32 [F]
        # What is trained stands beside the prior, so that weight decay leads back to naive Bayes, and not to nothing.
        self.change = nn.Parameter(torch.zeros(config.num_features))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> _Output:
        """Of token ids and what is present of them, both [b, L]: the weights of what stands in a text, each once, over
        the square root of their number. What was not seen in training has none."""
        keys = _features(input_ids, attention_mask.bool(), self.config.vocab_size).sort(dim=1).values
        places = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        known = self.keys[places] == keys
        known[:, 1:] &= keys[:, 1:] != keys[:, :-1]
        weights = (self.prior + self.change)[places] * known
        return _Output((weights.sum(1) / known.sum(1).clamp(min=1).sqrt())[:, None])


def _features(token_ids: Tensor, present: Tensor, vocab_size: int) -> Tensor:
    """[b, 2L - 1]: of words and pairs of words; -1 where there is none, or a word is unknown."""
    usable = present & (token_ids > 2)
    single = torch.where(usable, token_ids, -1)
    pair = (token_ids[:, :-1] + 1) * vocab_size + token_ids[:, 1:]
    return torch.cat([single, torch.where(usable[:, :-1] & usable[:, 1:], pair, -1)], 1)


def write_words_model(
    directory: Path, better: Sequence[str], worse: Sequence[str], *, max_tokens: int, template: str = ""
) -> None:
    """A model and its tokenizer, from texts that were preferred and texts that were not. The same texts make the same
    model.

    Raises:
      BadInput: when transformers is not installed, or the texts have no word.
    """
    tokenizer = _word_tokenizer([*better, *worse])
    tokenizer.chat_template = template or None
    counts = [_counted(tokenizer, dict.fromkeys(texts)) for texts in (better, worse)]
    keys = sorted(counts[0].keys() | counts[1].keys())
    if not keys:
        raise BadInput("no word in any of the texts: a model of words has nothing to learn from")
    totals = [sum(side.values()) + _SMOOTHING * len(keys) for side in counts]
    share = [
        torch.tensor([side[key] + _SMOOTHING for key in keys]) / total
        for side, total in zip(counts, totals, strict=True)
    ]
    config = WordsConfig(len(tokenizer), len(keys), max_tokens)
    model = WordsModel(config)
    model.keys.copy_(torch.tensor(keys))
    model.prior.copy_(_PRIOR_SCALE * (share[0].log() - share[1].log()))
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    (directory / "model.safetensors").write_bytes(safetensors.torch.save(dict(model.state_dict()), {"format": "pt"}))
    tokenizer.save_pretrained(directory)


def is_words_model(directory: Path) -> bool:
    try:
        return bool(json.loads((directory / "config.json").read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_words_model(directory: Path) -> WordsModel:
    """Raises BadInput: when its files are not such a model's."""
    try:
        config = TypeAdapter(WordsConfig).validate_json((directory / "config.json").read_bytes())
        model = WordsModel(config)
        model.load_state_dict(safetensors.torch.load_file(directory / "model.safetensors"))
    except (OSError, ValidationError, safetensors.SafetensorError, RuntimeError) as error:
        first = " ".join(str(error).split())[:200]
        raise BadInput(f"{directory}: no model of words can be loaded: {first}") from None
    return model


def _counted(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    """In how many of the texts each feature is."""
    found: Counter[int] = Counter()
    for text in texts:
        tokens = torch.tensor([tokenizer.encode(text, add_special_tokens=False)], dtype=torch.int64)
        features = _features(tokens, torch.ones_like(tokens, dtype=torch.bool), len(tokenizer))
        found.update(set(features[0].tolist()) - {-1})
    return found


def _word_tokenizer(texts: Iterable[str]) -> Any:
    try:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise BadInput("reward models of texts need transformers: pip install 'rollcall-rl[lm-cpu]'") from None
    core = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    trainer = trainers.WordLevelTrainer(vocab_size=MAX_WORDS, special_tokens=[PAD, EOS, UNKNOWN], show_progress=False)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
