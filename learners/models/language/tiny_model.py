"""A language model small enough to learn on two cores: Qwen3's architecture, seeded weights, one token a character.
It is given a task's alphabet. transformers is imported only when a model is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from rollcall.cluster.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"  # tokens 0, 1 and 2; the characters follow
HEAD_DIM = 32  # the least that paged attention kernels for CPUs take


def write_tiny_model(
    directory: Path,
    *,
    alphabet: str = "",
    tokenizer: PreTrainedTokenizerFast | None = None,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    intermediate_size: int = 384,
    max_position_embeddings: int = 512,
    tie_word_embeddings: bool = True,
    seed: int,
) -> None:
    """Writes a model and its tokenizer in Hugging Face's layout; with the defaults, about 0.8 million parameters.

    With a tokenizer, its vocabulary takes the place of the alphabet's. The same arguments write the same bytes, and the
    process's own random numbers go on undisturbed.

    Raises:
      BadInput: when transformers is not installed.
      ValueError: when the heads cannot be shared out evenly, or the alphabet is empty.
    """
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads {num_heads} is no multiple of num_kv_heads {num_kv_heads}: give one that is")
    tokenizer = tokenizer or character_tokenizer(alphabet)
    from transformers import Qwen3ForCausalLM

    config = tiny_config(
        len(tokenizer),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs' generators too, which are not restored here.
        torch.default_generator.manual_seed(seed)
        model = Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]
    # Not model.save_pretrained: it draws a progress bar for 3 MB. What either writes, no other user may read.
    tensors = model.state_dict()
    if tie_word_embeddings:
        del tensors["lm_head.weight"]  # the embedding's storage; readers tie it again
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    weights = directory / "model.safetensors"
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})  # not save: a third copy of all of them
    weights.chmod((directory / "config.json").stat().st_mode)
    model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def tiny_config(
    vocab_size: int,
    *,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    intermediate_size: int = 384,
    max_position_embeddings: int = 512,
    tie_word_embeddings: bool = True,
    pad_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> Qwen3Config:
    """The architecture of such a model."""
    from transformers import Qwen3Config

    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=HEAD_DIM,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
        dtype="float32",
    )


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token for each character of the alphabet, in its order; any other character is "<unk>".

    No space is added or taken away: decode(encode(text)) == text for every text over the alphabet.

    Raises:
      BadInput: when transformers is not installed.
      ValueError: when the alphabet is empty.
    """
    if not alphabet:
        raise ValueError("alphabet '' is empty: give the characters that prompts and answers consist of")
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise BadInput(
            "a language model needs the package transformers, which is not installed: "
            "pip install rollcall-rl[lm-cpu] (or [lm-gpu])"
        ) from None
    tokens = dict.fromkeys([PAD, EOS, UNKNOWN, *alphabet])
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()  # joins tokens with nothing between them
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
