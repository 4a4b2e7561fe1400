"""What the process needs of memory that trains a language run's reward models while its policy learns."""

from __future__ import annotations

from rollcall.deploy.config.recipe.preference_settings import TextPreferencesConfig
from rollcall.deploy.plan import memory
from rollcall.deploy.plan.model_size import ModelSize
from rollcall.deploy.plan.needs import Part, Role
from rollcall.learners.algorithms.preferences.bradley_terry_config import BradleyTerryConfig

COPIES = 6  # of the model in float32: weights, gradients, two moments, the best so far, the one before
COPIES_WITH_ADAPTERS = 3  # its own, the one before, and one while adapters are merged


def trainer_roles(config: TextPreferencesConfig | None, size: ModelSize, *, longest: int) -> list[Role]:
    """None where no rater is asked while the policy learns. `longest`: tokens of prompt and response."""
    if config is None or config.before_all:
        return []
    longest = min(longest, config.max_tokens)
    tokens = min(config.candidates * config.batch_size * longest, max(BradleyTerryConfig().budget, 2 * longest))
    step = int(tokens * (size.saved_per_token + 4 * size.width))
    copies = COPIES if config.lora is None else COPIES_WITH_ADAPTERS
    parts = (
        Part("program", memory.LANGUAGE_LEARNER, host=True),
        Part("reward model", 4 * copies * size.num_parameters, "a smaller policy.model", host=True),
        Part("a gradient step", step, "preferences.batch_size, max_tokens", host=True),
    )
    return [Role("preference trainer", parts)]
