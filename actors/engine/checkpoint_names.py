"""What the tensors of a model in memory are called, and how they are cut, in a checkpoint: transformers fuses and
renames while it loads (a layer's experts into one tensor), and other libraries read checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollcall.cluster.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointNames:
    """Of the model of one directory."""

    def __init__(self, directory: Path) -> None:
        """Builds the model's structure, without its weights.

        Raises:
          BadInput: when transformers knows no causal language model of this kind.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(str(directory))
            with torch.device("meta"):
                self._model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise BadInput(f"{directory}: no causal language model can be loaded from it: {first}") from None

        self.kind = type(self._model).__name__

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the model's parameters, by their names in memory."""
        return {name: tuple(item.shape) for name, item in self._model.named_parameters() if item.is_floating_point()}

    def tensors(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as a checkpoint has them, from those of the model in memory by their names there: views of them
        where that is possible.

        Raises:
          BadInput: when transformers does not know how a checkpoint of this model would have them.
        """
        from transformers.core_model_loading import revert_weight_conversion

        try:
            reverted: dict[str, Tensor] = revert_weight_conversion(self._model, dict(published))
            return reverted
        except (NotImplementedError, ValueError, KeyError, RuntimeError) as error:
            raise BadInput(f"{self.kind}: transformers cannot write its weights as a checkpoint's: {error}") from None
