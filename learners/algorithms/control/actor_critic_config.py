"""Settings that algorithms with an actor and a critic have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Discount = Annotated[float, Field(ge=0, le=1, description="weight of a reward one step later: the horizon")]

NumMinibatches = Annotated[
    int, Field(ge=1, description="gradient steps per pass; a recurrent policy's minibatch is whole env columns")
]

ValueCoef = Annotated[
    float, Field(ge=0, description="weight of the value loss: actor and critic share a trunk, or a gradient clip")
]

EntropyCoef = Annotated[float, Field(ge=0, description="weight of the entropy bonus: keeps exploration alive")]

NormaliseAdvantages = Annotated[
    bool, Field(description="to mean 0, deviation 1 over the batch: frees the step from the reward's scale")
]
