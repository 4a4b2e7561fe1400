"""What `rollcall export` is asked for, and what came of it. What is written, each kind of run knows itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.settings import COMMAND_LINE

ONNX_SUFFIX = ".onnx"
ExportDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ExportOptions:
    """Of one export. What a kind of run has no use for, it refuses."""

    directory: Path | None = None  # of a language model; None: <run>/policy
    onnx: Path | None = None  # the file of a control policy; None: <run>/policy.onnx
    dtype: ExportDtype | None = None  # of a language model's weights; None: float32, as they are trained
    adapters: bool = False  # only the LoRA adapters, as peft keeps them; default directory: <run>/adapters
    push: str | None = None  # OWNER/NAME on the Hugging Face hub, where the directory goes too
    public: bool = False  # whether that repository is for all to see, if it is made now

    @classmethod
    def of(cls, target: str | Path | None, onnx: str | Path | None = None, **more: object) -> ExportOptions:
        """`target`: a directory, or a file that ends in .onnx.

        Raises:
          BadInput: for a directory and a file of ONNX at once.
        """
        path, file = (None if given is None else Path(given) for given in (target, onnx))
        if path is not None and path.suffix == ONNX_SUFFIX and file is None:
            path, file = None, path
        if path is not None and file is not None:
            raise BadInput(f"--onnx = {str(file)!r} and the directory {str(path)!r} ({COMMAND_LINE}): give one of them")
        return cls(directory=path, onnx=file, **more)  # type: ignore[arg-type]

    def refuse_for_control(self, run_directory: Path) -> None:
        """Raises BadInput: for what only a language model's export has."""
        asked = {
            "a directory": self.directory,
            "--dtype": self.dtype,
            "--adapters": self.adapters,
            "--push": self.push,
        }
        for name, value in asked.items():
            if value:
                raise BadInput(
                    f"{run_directory}: a control run: {name} is for language models; its policy becomes an ONNX file: "
                    f"rollcall export {run_directory} FILE.onnx"
                )

    def refuse_for_language(self, run_directory: Path) -> None:
        """Raises BadInput: for what only a control policy's export has, and for what does not go together."""
        if self.onnx is not None:
            raise BadInput(
                f"{run_directory}: a language run: --onnx is for control policies; this one becomes a directory for "
                f"transformers and vLLM: rollcall export {run_directory} DIRECTORY"
            )
        if self.push is not None and self.push.count("/") != 1:
            raise BadInput(f"--push = {self.push!r} ({COMMAND_LINE}): name a repository of the hub: OWNER/NAME")
        if self.public and self.push is None:
            raise BadInput(f"--public ({COMMAND_LINE}): is for a repository that is made by --push OWNER/NAME")


@dataclass(frozen=True)
class Exported:
    """Where it is, and what there is to say of it."""

    path: Path
    told: tuple[str, ...] = ()
