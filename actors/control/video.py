"""One episode as a moving picture, for envs that render. Writes GIF, which needs no codec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rollcall.actors.control.evaluation import Wave, as_judged
from rollcall.actors.envs.contract import described
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.actors.envs.local_group import LocalGroup
from rollcall.actors.policy import Policy
from rollcall.cluster.errors import BadInput

_MAX_WIDTH = 480


def record_video(
    env_config: EnvConfig, policy: Policy, path: Path, *, seed: int = 0, greedy: bool = True, max_steps: int = 2_000
) -> float:
    """Writes one episode (the evaluation's episode 0) to `path`, a .gif. Returns the episode's return.

    Raises:
      BadInput: where the env does not render, or `path` is no .gif, or Pillow is missing.
    """
    if path.suffix.lower() != ".gif":
        raise BadInput(f"video {path}: only GIF can be written: name it {path.with_suffix('.gif').name}")
    try:
        from PIL import Image
    except ImportError:
        raise BadInput("a video needs Pillow, which is not installed: pip install pillow") from None
    env = make_env(as_judged(env_config), render_mode="rgb_array")
    if env.render_mode != "rgb_array":
        raise BadInput(f"env {env_config.id!r} does not render: it takes no render_mode 'rgb_array'")
    group = LocalGroup(lambda: env, 1, seed=0, name=env_config.id)
    total = [0.0]
    pixels = _Pixels(env_config.id)
    frames = (
        _picture(pixels.of(frame), Image) for frame in _frames(group, env, policy, seed, greedy, max_steps, total)
    )
    try:
        first = next(frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        # GIF counts in hundredths of a second.
        duration_ms = 10 * max(2, round(100 / float(env.metadata.get("render_fps") or 30)))
        first.save(path, save_all=True, append_images=frames, duration=duration_ms, loop=0)
    finally:
        group.close()
    return total[0]


def _frames(
    group: LocalGroup, env: Any, policy: Policy, seed: int, greedy: bool, max_steps: int, total: list[float]
) -> Iterator[Any]:
    wave = Wave(group, policy, range(1), seed, greedy)
    yield _render(env, group.name)
    for step in wave.steps(max_steps):
        total[0] += float(step.rewards[0])
        yield _render(env, group.name)


def _render(env: Any, name: str) -> Any:
    try:
        frame = env.render()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BadInput(f"env {name!r} cannot render here ({text})") from error
    return frame


class _Pixels:
    """Frames as bytes of colour [H, W, 3 or 4], from what envs render: bytes, other whole numbers of 0..255, or floats,
    of 0..1 or of 0..255. Which of the two, the first frame that is not black says."""

    def __init__(self, env: str) -> None:
        self._env = env
        self._of_one: bool | None = None  # floats are of 0..1

    def of(self, frame: Any) -> Any:
        """A copy: the env may draw its next frame into the same array.

        Raises:
          BadInput: where it is no frame.
        """
        try:
            pixels = np.array(frame)
        except Exception:
            pixels = np.zeros(0, object)
        if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
            pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
        if pixels.dtype.kind not in "biuf" or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or not pixels.size:
            raise BadInput(
                f"env {self._env!r} renders {described(frame)}, not frames of colour: let render return an array "
                "[height, width, 3]"
            )
        if pixels.dtype == np.uint8:
            return pixels
        if pixels.dtype.kind == "b":
            return pixels * np.uint8(255)
        low, high = float(pixels.min()), float(pixels.max())
        if not 0.0 <= low <= high <= 255.0:
            raise BadInput(f"env {self._env!r} renders pixels of {low:g} to {high:g}: give 0..255, or floats of 0..1")
        if pixels.dtype.kind != "f":
            return pixels.astype(np.uint8)
        if self._of_one is None and high > 0.0:
            self._of_one = high <= 1.0
        if self._of_one and high > 1.0:
            raise BadInput(f"env {self._env!r} renders floats of 0..1 and then {high:g}: give one kind")
        return np.rint(pixels * 255.0 if self._of_one else pixels).astype(np.uint8)


def _picture(pixels: Any, image: Any) -> Any:
    picture = image.fromarray(pixels)
    if picture.width > _MAX_WIDTH:
        picture = picture.resize((_MAX_WIDTH, round(picture.height * _MAX_WIDTH / picture.width)))
    return picture.quantize(64)  # a palette of its own, and a quarter of the memory
