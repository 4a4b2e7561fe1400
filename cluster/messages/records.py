"""The records by their names until everybody imports them from the file of their subject."""

from __future__ import annotations

from rollcall.cluster.messages.arrays import Array as Array
from rollcall.cluster.messages.attempt import EngineLoad as EngineLoad
from rollcall.cluster.messages.attempt import EpisodeStats as EpisodeStats
from rollcall.cluster.messages.attempt import Header as Header
from rollcall.cluster.messages.attempt import Produced as Produced
from rollcall.cluster.messages.attempt import PromptPayload as PromptPayload
from rollcall.cluster.messages.attempt import SampleStats as SampleStats
from rollcall.cluster.messages.attempt import Scoring as Scoring
from rollcall.cluster.messages.attempt import ShardPayload as ShardPayload
from rollcall.cluster.messages.attempt import Ticket as Ticket
from rollcall.cluster.messages.attempt import Timing as Timing
from rollcall.cluster.messages.attempt import Unit as Unit
from rollcall.cluster.messages.experience import SCHEMA_VERSION as SCHEMA_VERSION
from rollcall.cluster.messages.experience import GymTrajectory as GymTrajectory
from rollcall.cluster.messages.experience import LMTrajectory as LMTrajectory
from rollcall.cluster.messages.weights import Canary as Canary
from rollcall.cluster.messages.weights import TensorSpec as TensorSpec
from rollcall.cluster.messages.weights import Weights as Weights
from rollcall.cluster.messages.weights import pack_weights as pack_weights
