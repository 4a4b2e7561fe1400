"""What is known of an algorithm before it is imported, and torch with it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from rollcall.cluster.messages.attempt import Unit


@dataclass(frozen=True, slots=True)
class Needs:
    """What an algorithm asks of whoever builds a run around it."""

    critic: bool = False
    reference: bool = False  # the policy of version 0, frozen
    target_networks: tuple[str, ...] = ()  # models of which a copy is kept, which only `after_step` changes
    networks: tuple[str, ...] = ()  # that it builds itself (BuildsNetworks): critics, say; only learning needs them
    gradients: bool = False  # its batches are of gradients, which actors compute: it LearnsFromGradients
    replay: bool = False  # its batches are drawn from what was seen before
    expert: bool = False  # actors hand back what an expert (`config.expert`) would have done in their place
    min_group_size: int = 1  # samples of one prompt
    corrects_policy_lag: bool = False  # False: the loss assumes on-policy data, so max_policy_lag must be 0


@dataclass(frozen=True)
class Declared:
    """A shipped algorithm as a recipe's reader needs it. NAME_config.py beside NAME.py has it as DECLARED."""

    Config: type[BaseModel]
    needs: Needs  # the class's, which hold for every config
    unit: Unit | None = None  # what one ticket produces for it; None: it learns from a set, and there are no tickets
