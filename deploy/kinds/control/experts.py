"""The expert of a run that is taught: a function that is named, or the policy of another run, as it lies in the run's
own directory. How it got there is beginning.py's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollcall.actors.control.expert import FunctionExpert, TaughtPolicy
from rollcall.actors.envs.observations import Space
from rollcall.actors.envs.plain_spaces import alike
from rollcall.actors.policy import Policy
from rollcall.cluster.checkpoint import read_state
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import read_json
from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.messages.weights import pack_weights
from rollcall.deploy.config.recipe.run_config import is_function
from rollcall.deploy.kinds.control.policy import LoadedControl
from rollcall.deploy.rundir.files import EXPERT, MARKER
from rollcall.learners.models.policy import TorchPolicy
from rollcall.learners.models.policy_config import PolicyConfig

POLICY = "policy"  # in its marker: the settings of its network


def taught(learner: Policy, settings: Any, spaces: tuple[Space, Space], run_directory: Path, stored: Any) -> Policy:
    """The learner, who acts beside the expert of an algorithm's `settings`. `stored`: actions of the env as they are
    learnt.

    Raises:
      BadInput: when there is no such expert.
    """
    expert: Policy
    named = str(settings.expert)
    if is_function(named):
        shown, taken = spaces
        expert = FunctionExpert(import_object(named), name=named, observation_space=shown, action_space=taken)
    else:
        expert = _of_run(run_directory / EXPERT, spaces)
    return TaughtPolicy(learner, expert, stored=stored, beta=settings.beta, greedy=settings.acts == "greedy")


def write_expert(loaded: LoadedControl, directory: Path, origin: Mapping[str, Any]) -> None:
    """Into the directory of the run that it is to teach, in one move."""
    settings = loaded.config.policy.model_dump(mode="json")
    loaded.write_beginning(directory, {**origin, POLICY: settings}, at=EXPERT)


def unfit(loaded: LoadedControl, spaces: tuple[Space, Space]) -> str:
    """Why a policy cannot be an expert in an env of these spaces; empty when it can."""
    observations, actions = spaces
    if loaded.config.policy.recurrent != "none":
        return (
            f"its policy has a memory ({loaded.config.policy.recurrent}): an expert is asked about single observations"
        )
    if not alike(observations, loaded.observation_space):
        return f"it sees {loaded.observation_space}, and this env shows {observations}: name one of such an env"
    if actions != loaded.action_space:
        return f"its actions are {loaded.action_space}, and this env takes {actions}: name one of such an env"
    return ""


def _of_run(directory: Path, spaces: tuple[Space, Space]) -> Policy:
    marker, state = read_json(directory / MARKER), read_state(directory, "weights")
    if POLICY not in marker or state is None:
        raise BadInput(f"{directory}: the expert's policy is not there: begin the run again")
    try:
        policy = PolicyConfig.model_validate(marker[POLICY] | {"hidden_sizes": tuple(marker[POLICY]["hidden_sizes"])})
        expert, tensors = TorchPolicy(*spaces, policy), state[0]
        # A file has its tensors in an order of its own; weights have them in the network's.
        names = [name for name, _ in (*expert.module.named_parameters(), *expert.module.named_buffers())]
        ordered = {name: tensors[name] for name in (f"actor_critic.{own}" for own in names) if name in tensors}
        expert.load(pack_weights(EXPERT, 0, 0, {**ordered, **tensors}))
        return expert
    except (ValueError, KeyError) as error:
        raise BadInput(f"{directory}: the expert's policy is damaged: {error}: begin the run again") from None
