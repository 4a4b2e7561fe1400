"""Where the processes of a vLLM engine meet: a file, which vLLM leaves in the machine's temporary folder for ever."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def rendezvous() -> Iterator[None]:
    """For the start of an engine. Once it is up its processes have met, and nobody opens the file again."""
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    with tempfile.TemporaryDirectory(prefix="rollcall-engine-") as folder, ExitStack() as changes:
        modules: tuple[Any, ...] = (multiproc_executor, uniproc_executor)
        for module in modules:
            changes.callback(setattr, module, "get_file_store_init_method", module.get_file_store_init_method)
            module.get_file_store_init_method = lambda: f"file://{Path(folder) / uuid4().hex}"
        yield
