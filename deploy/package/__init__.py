"""Rollcall from Python. It installs as `rollcall` itself:

    import rollcall

    if __name__ == "__main__":  # envs in processes of their own import this script
        result = rollcall.train("cartpole-ppo", seed=1, progress=True)
        action = result.policy().act(observation)

Whatever a recipe or the command line can say, `train` takes as keywords; docs/python.md has the whole of it. Nothing
heavy is imported before something here is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcall.cluster.errors import BadInput
    from rollcall.deploy.kinds.loading import export_policy as export
    from rollcall.deploy.kinds.loading import load_policy
    from rollcall.deploy.python.asking import evaluate
    from rollcall.deploy.python.result import Result
    from rollcall.deploy.python.running import resume, train

    __version__: str

__all__ = ["BadInput", "Result", "__version__", "evaluate", "export", "load_policy", "resume", "train"]


def __getattr__(name: str) -> Any:
    # On first use: `import rollcall` alone must cost nothing, and the command line imports it too.
    if name == "__version__":
        from rollcall.deploy.python.version import installed_version

        return installed_version()
    if name == "BadInput":
        from rollcall.cluster.errors import BadInput

        return BadInput
    if name == "Result":
        from rollcall.deploy.python.result import Result

        return Result
    if name == "evaluate":
        from rollcall.deploy.python.asking import evaluate

        return evaluate
    if name in ("train", "resume"):
        from rollcall.deploy.python import running

        return getattr(running, name)
    if name == "load_policy":
        from rollcall.deploy.kinds.loading import load_policy

        return load_policy
    if name == "export":
        from rollcall.deploy.kinds.loading import export_policy

        return export_policy
    raise AttributeError(f"module 'rollcall' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
