"""The composition root: configuration, launching, the command line, recipes. The only place that knows every part.

From Python: `rollcall.train("cartpole-ppo", seed=1)` and what else deploy/package has. `train`, `load_policy` and
`export_policy` here are what earlier releases offered, and stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcall.deploy.drive.training import train
    from rollcall.deploy.kinds.loading import export_policy, load_policy

__all__ = ["export_policy", "load_policy", "train"]


def __getattr__(name: str) -> Any:
    # On first use: importing the package must not cost the command line an import of torch.
    if name == "train":
        from rollcall.deploy.drive.training import train

        return train
    if name == "export_policy":
        from rollcall.deploy.kinds.loading import export_policy

        return export_policy
    if name == "load_policy":
        from rollcall.deploy.kinds.loading import load_policy

        return load_policy
    raise AttributeError(f"module 'rollcall.deploy' has no attribute {name!r}")
