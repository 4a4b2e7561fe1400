"""Labelling over HTTP: every answer of the routes on a real port, clips, and raters that are programs."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from label_service import TOKEN, Service, ServiceMaker, clips, labelling_service, swinging_pole, text
from PIL import Image
from pydantic import ValidationError

from rollcall.cluster.errors import RewardRefused, RewardUnavailable
from rollcall.cluster.redis_server import PrivateRedis
from rollcall.reward_service.clips import MAX_FRAMES, MAX_WIDTH, Clip, RecordedFrames, clip_of, draw
from rollcall.reward_service.label_client import LabelClient
from rollcall.reward_service.label_queue import StoreQueue
from rollcall.reward_service.preference_files import PreferencePair, SegmentPair, read_preferences
from rollcall.reward_service.preferences import Comparison, SegmentCandidate
from rollcall.reward_service.protocol import ArrayField, Segment
from rollcall.reward_service.raters import SyntheticRater, SyntheticRaterConfig
