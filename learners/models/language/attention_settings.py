"""What a model's config says of its attention: its kinds, its windows, its heads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

SLIDING, FULL = "sliding_attention", "full_attention"
_WINDOWS = ("window", "window_size", "chunk_size")  # how configs name attention that does not reach back to the start
_WITHIN_PACKED_ROWS = {"sliding_window", "use_sliding_window"}
_SHORT = 4


class AttentionSettings:
    """Of one model, as transformers reads them in each pass."""

    def __init__(self, config: object) -> None:
        self._config: Any = cast(Any, config).get_text_config()

    @property
    def implementation(self) -> str | None:
        return cast("str | None", self._config._attn_implementation)

    @property
    def kinds(self) -> set[str]:
        """Where the config says so of each layer."""
        return set(getattr(self._config, "layer_types", None) or ())

    @property
    def window(self) -> int | None:
        """Positions that a layer with a window sees, itself among them."""
        return getattr(self._config, "sliding_window", None) or None

    @property
    def whole(self) -> bool:
        """Every layer sees everything before."""
        return not self._windows() and self.kinds <= {FULL}

    @property
    def packable(self) -> bool:
        """Packed rows have masks for all that there is."""
        return self._windows() <= _WITHIN_PACKED_ROWS and self.kinds <= {FULL, SLIDING}

    @property
    def heads(self) -> tuple[int, int, int]:
        """Of queries, of keys, and their width."""
        heads = int(self._config.num_attention_heads)
        width = getattr(self._config, "head_dim", None) or self._config.hidden_size // heads
        return heads, int(getattr(self._config, "num_key_value_heads", None) or heads), int(width)

    @contextlib.contextmanager
    def short_window(self) -> Iterator[None]:
        """A window that a short text shows, where there is one; then as it was."""
        own = self.window
        if own:
            self._config.sliding_window = min(own, _SHORT)
        try:
            yield
        finally:
            if own:
                self._config.sliding_window = own

    def _windows(self) -> set[str]:
        settings = self._config.to_dict()
        if not settings.get("use_sliding_window", True):
            return set()
        return {
            name for name, value in settings.items() if name.endswith(_WINDOWS) and isinstance(value, int) and value
        }
