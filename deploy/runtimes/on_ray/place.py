"""Where a member's process stands, and what of the user's own it is given. Ray carries it, within the run's cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray import cloudpickle

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs import given
from rollcall.deploy.config.recipe.root_config import RootConfig


@dataclass(frozen=True)
class Place:
    """The directory from which user modules are found, and objects that have no module, by their names in `given`."""

    working_directory: str
    objects: Mapping[str, object] = field(default_factory=dict)


def objects_to_send(config: RootConfig) -> Mapping[str, object]:
    """Those that this program was given and the run's settings name.

    Raises:
      BadInput: for one that cannot leave it.
    """
    objects = given.things_in(config.model_dump_json())
    for name, thing in objects.items():
        try:
            cloudpickle.dumps(thing)
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise BadInput(
                f"{given.shown(name)} cannot be sent to the run's processes ({text}): make what it holds inside it, "
                "put it into a module and give module:name, or set runtime='serial'"
            ) from None
    return objects
