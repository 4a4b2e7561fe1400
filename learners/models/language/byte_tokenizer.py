"""A tokenizer for texts of any alphabet, made from them: bytes, and pairs of bytes that come often (Sennrich et al.,
2016, arXiv:1508.07909, over bytes). Must never know what the texts are about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rollcall.cluster.errors import BadInput
from rollcall.learners.models.language.tiny_model import EOS, PAD, UNKNOWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_BYTES = 256


def byte_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Three special tokens, the 256 bytes, and merges of them up to `vocab_size` in all. The same texts make the same
    tokenizer, and decode(encode(text)) == text for every text.

    Raises:
      BadInput: when transformers is not installed.
      ValueError: when the vocabulary has no room for all bytes.
    """
    if vocab_size < 3 + NUM_BYTES:
        raise ValueError(f"vocab_size={vocab_size}: 3 special tokens and 256 bytes need {3 + NUM_BYTES}")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise BadInput("a tokenizer needs transformers: pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu])") from None
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, UNKNOWN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
