"""How large a model is, without its weights: its architecture is built on torch's meta device, which has shapes and no
numbers, and is asked what a training pass would keep for the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput
from rollcall.learners.models.language.tiny_model import tiny_config

_ON_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # as configurations call it
PROBE_TOKENS = 16  # of the row that is asked about: attention's square of it is small beside the rest


@dataclass(frozen=True)
class ModelSize:
    """Of a language model."""

    name: str  # of its architecture
    num_parameters: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    saved_per_token: int  # bytes that a training pass keeps of each token of a row, in float32, without the logits
    cache_per_token: int  # numbers that an engine keeps of each token: keys and values of all layers
    width: int  # numbers of a token in the widest part of a layer
    works_on_logits: bool  # scales or caps them, after its output layer
    linear: Mapping[str, int]  # of linear layers but the output, by the last part of their names: inputs and outputs

    def adapters(self, rank: int, targets: Sequence[str]) -> int:
        """Parameters of adapters of a rank beside the layers of these names; none: all of them."""
        last = {target.rpartition(".")[2] for target in targets}
        return rank * sum(count for name, count in self.linear.items() if not last or name in last)


def size_of_directory(directory: Path | str) -> ModelSize:
    """Of a model's directory, or of its name on the Hugging Face hub, whose config alone is read.

    Raises:
      BadInput: when there is no config that can be read.
    """
    from transformers import AutoConfig

    try:
        return size_of(AutoConfig.from_pretrained(str(directory)))
    except Exception as error:  # whatever a config of somebody's makes its class raise
        first = " ".join(str(error).split())[:300]
        raise BadInput(f"{directory}: no model's config can be read from it: {first}") from None


def size_of_tiny(settings: Mapping[str, Any], vocab_size: int) -> ModelSize:
    """Of the model that write_tiny_model would write."""
    return size_of(tiny_config(vocab_size, **settings))


def size_of(config: Any) -> ModelSize:
    """Of a transformers configuration."""
    from transformers import AutoModelForCausalLM

    untyped: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: Any = untyped.from_config(config, dtype=torch.float32)
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    layers, hidden = int(text.num_hidden_layers), int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden)
    width = max(2 * inner, (heads + 2 * kv_heads) * head_dim) + 2 * hidden
    saved = _saved_per_token(model)
    if saved is None:  # by hand, of a layer as most have it: norms, projections, rotations, attention, a gated MLP
        saved = 4 * layers * (7 * hidden + 7 * heads * head_dim + 5 * kv_heads * head_dim + 4 * inner)
    return ModelSize(
        name=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=int(text.vocab_size),
        hidden_size=hidden,
        num_layers=layers,
        saved_per_token=saved,
        cache_per_token=2 * layers * kv_heads * head_dim,
        width=width,
        works_on_logits=any(getattr(text, name, None) not in (None, 1.0) for name in _ON_LOGITS),
        linear=_linear(model),
    )


def _linear(model: Any) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    output = model.get_output_embeddings()
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and part is not output:
            found[name.rpartition(".")[2]] += part.in_features + part.out_features
    return found


def _saved_per_token(model: Any) -> int | None:
    """None: this model cannot be computed without numbers (experts that are chosen by their values)."""
    mask = torch.ones(1, 1, PROBE_TOKENS, PROBE_TOKENS, dtype=torch.bool, device="meta").tril()
    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device="meta")
    model.eval()
    try:
        body = model.base_model
        return saved_bytes(model, lambda: body(input_ids=ids, attention_mask=mask, use_cache=False)) // PROBE_TOKENS
    except Exception:  # whatever a model raises that looks at numbers
        return None


def saved_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """What a pass keeps for the way back, without parameters and buffers; what is kept twice counts once."""
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _ = forward()
    return sum(int(storage.nbytes()) for storage in kept.values())
