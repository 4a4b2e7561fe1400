"""The typed errors of what the network and the user do. A bad argument is a ValueError; our own mistake is an assert.

RollcallError
|-- BadInput            the user can fix it: one line, exit code 2
|-- StoreUnavailable    Redis does not answer within its deadline
|-- StaleEpoch          a message of an epoch that a restore has ended: refused
|-- LedgerConflict      a transition the books do not allow (late, duplicate, unknown attempt)
|-- ChecksumMismatch    weights differ from what was published
|-- WeightsTimeout      a version was not published within the deadline
|-- CheckpointDamaged   a checkpoint that must not be loaded
|-- BooksDamaged        a sealed segment of the books, or their index, that is missing or not as it was written
|-- RunAlive            another driver holds this run's lock
|-- EnvFailure          an environment raised, and its budget of restarts is spent
|-- ExpertFailure       an expert raised, or gave an action that the env does not take
|-- NonFinite           observations, rewards, losses or gradients that are NaN or infinite
|-- EngineMismatch      a generation engine does not take the learner's weights, or says otherwise with them: every
|                       other attempt would end the same way
|-- Stalled             nothing moved for the watchdog's whole patience; the message names what was waited for
|-- ClusterLost         what a private Ray cluster stands on has died
|-- BudgetSpent         a component was restarted, or rollouts failed in a row, as often as allowed
|-- WireError           bytes that are no record, or one of another version
|-- LeaseLost           a label under a lease that has expired, is another rater's, or was used: refused
`-- RewardError         the reward service gave no score: never a score of 0
    |-- RewardUnavailable   not there, loading, draining or full: try again later
    |-- RewardTimeout       not within the deadline
    |-- RewardRefused       it will never take this request: token, schema, size, unknown model
    |-- VersionsMixed       one group's items were scored by different versions of the model
    `-- Unscored            the service has an error for an item instead of a score
"""

from __future__ import annotations

from rollcall.cluster.inputs.user_code import user_line


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


REMEDY = "what makes it smaller: "  # how a line begins that says what to change, below the one that says what is wrong


class RollcallError(Exception):
    """Root of the tree."""

    @property
    def headline(self) -> str:
        """What the command line says of it."""
        said = "\n".join(line for line in str(self).splitlines() if not line.startswith(REMEDY))
        return " ".join(said.split())[:600]

    @property
    def remedy(self) -> str:
        """The line below it, where there is one, that says which settings take less memory."""
        return next((line for line in str(self).splitlines() if line.startswith(REMEDY)), "")


class BadInput(RollcallError):
    """What the user gave cannot be used. The message says what, where it came from, and what to do."""


class StoreUnavailable(RollcallError):
    pass


class StaleEpoch(RollcallError):
    pass


class LedgerConflict(RollcallError):
    pass


class ChecksumMismatch(RollcallError):
    pass


class WeightsTimeout(RollcallError):
    pass


class CheckpointDamaged(RollcallError):
    pass


class BooksDamaged(RollcallError):
    pass


class RunAlive(RollcallError):
    pass


class EnvFailure(RollcallError):
    """Its first line says which env, and what; its traceback may follow."""

    @property
    def headline(self) -> str:
        """The line of the env's own code comes first."""
        first, _, trace = str(self).partition("\n")
        return ": ".join(filter(None, (user_line(trace), first)))


class ExpertFailure(RollcallError):
    """Its first line says which expert, and what; its traceback may follow."""

    @property
    def headline(self) -> str:
        return _first_line(self)


class NonFinite(RollcallError):
    pass


class EngineMismatch(RollcallError):
    pass


class Stalled(RollcallError):
    pass


class ClusterLost(RollcallError):
    pass


class BudgetSpent(RollcallError):
    def __init__(self, text: str, *, reason: str = "") -> None:
        """`reason`: why rollouts failed, as the books call it."""
        super().__init__(text)
        self.reason = reason

    @property
    def headline(self) -> str:
        """The traceback of the last failure may follow it."""
        return _first_line(self)


class WireError(RollcallError):
    pass


class LeaseLost(RollcallError):
    pass


class RewardError(RollcallError):
    pass


class RewardUnavailable(RewardError):
    pass


class RewardTimeout(RewardError):
    pass


class RewardRefused(RewardError):
    pass


class VersionsMixed(RewardError):
    pass


class Unscored(RewardError):
    def __init__(self, text: str, *, fruitless: bool = False) -> None:
        """`fruitless`: no other item of the trajectory has a score either."""
        super().__init__(text)
        self.fruitless = fruitless
