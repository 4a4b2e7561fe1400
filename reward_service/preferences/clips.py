"""Segments as moving pictures: the env drawn in the states that were seen, where it is known how to set them; pictures
where pictures were seen; else a plot of what was seen over time."""

from __future__ import annotations

import base64
import io
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.reward_service.protocol import Array, ArrayField, Segment

Frames = NDArray[np.uint8]  # [N, H, W, 3]
MAX_FRAMES = 150
MAX_WIDTH = 300
MAX_FPS = 30.0
DRAWING = 1  # another one whenever the same segment is drawn otherwise: part of the cache's names
_PLOTTED = 8  # components of an observation
_COLOURS = ("#2463c9", "#c8620a", "#2b8259", "#8a4fb5", "#b3261e", "#0f7f8f", "#7a6a00", "#5b6470")

_drawing = threading.Lock()  # pygame draws for one thread at a time
_envs: dict[str, Any] = {}


class Clip(BaseModel):
    """Frames side by side in one PNG, row by row, for a canvas to play."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(description="base64 of a PNG", repr=False)
    num_frames: int = Field(ge=1)
    columns: int = Field(ge=1)
    width: int = Field(ge=1, description="of one frame")
    height: int = Field(ge=1)
    fps: float = Field(gt=0, allow_inf_nan=False)
    caption: str = Field(description="for whoever does not see it")


class RecordedFrames(BaseModel):
    """Frames that were captured when the segment was made, for envs that cannot be drawn from what was seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: ArrayField = Field(description="uint8 [N, H, W, 3]")
    fps: float = Field(default=30.0, gt=0, le=240, allow_inf_nan=False)

    @model_validator(mode="after")
    def _are_pictures(self) -> Self:
        shape = self.frames.shape
        if self.frames.dtype != "uint8" or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"frames are {self.frames.dtype}{list(shape)}: uint8 [N, H, W, 3] is needed")
        if max(shape[1:3]) > 4096:
            raise ValueError(f"frames are {shape[2]} x {shape[1]}: at most 4096 x 4096 are taken")
        self.frames.array()  # ValueError where they are no base64
        return self

    def clip(self) -> Clip:
        return clip_of(self.frames.array(), fps=self.fps, caption=f"{self.frames.shape[0]} recorded frames")


def draw(segment: Segment, *, env_id: str | None, beside: Sequence[Segment] = ()) -> Clip:
    """The best picture there is. A plot has one scale with the segments `beside` it."""
    steps = f"{segment.num_steps} steps"
    observations = segment.observations.array()
    if env_id in _STATES:
        frames = _env_frames(env_id, observations, segment.actions.array())
        if frames is not None:
            return clip_of(frames[0], fps=frames[1], caption=f"{env_id}, {steps}")
    pictures = _seen_pictures(observations)
    if pictures is not None:
        return clip_of(pictures, fps=15.0, caption=f"{env_id or 'segment'}, what was seen in {steps}")
    plot = _plot(segment, [segment, *beside])
    return clip_of(plot[None], fps=1.0, caption=f"{env_id or 'segment'}, plot of what was seen in {steps}")


def clip_of(frames: Frames, *, fps: float, caption: str) -> Clip:
    """At most MAX_FRAMES of them and MAX_FPS, evenly chosen, and no wider than MAX_WIDTH."""
    from PIL import Image

    stride = _stride(len(frames), fps)
    chosen = frames[::stride]
    count, full_height, full_width = chosen.shape[:3]
    scale = min(1.0, MAX_WIDTH / full_width)
    width, height = max(1, round(full_width * scale)), max(1, round(full_height * scale))
    columns = math.ceil(math.sqrt(count * height / width)) or 1
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    for index, frame in enumerate(chosen):
        picture = Image.fromarray(np.ascontiguousarray(frame))
        if scale < 1.0:
            picture = picture.resize((width, height), Image.Resampling.BOX)
        sheet.paste(picture, (index % columns * width, index // columns * height))
    small = sheet.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(small.getpalette()).reshape(-1, 3)
    palette[(palette >= 250).all(axis=1)] = 255  # its white is nearly white, and shows beside the page's
    small.putpalette(palette.astype(np.uint8).tobytes())
    content = io.BytesIO()
    small.save(content, "PNG")
    return Clip(
        image=base64.b64encode(content.getvalue()).decode("ascii"),
        num_frames=count,
        columns=columns,
        width=width,
        height=height,
        fps=fps / stride,
        caption=caption,
    )


def _stride(count: int, fps: float) -> int:
    return max(math.ceil(count / MAX_FRAMES), math.ceil(fps / MAX_FPS))


# Envs whose state follows from what is observed. Only these: an id that is asked for by name imports nothing.


def _set_whole(env: Any, observation: Array, _: Array) -> None:
    env.state = np.asarray(observation, np.float64)


def _set_pendulum(env: Any, observation: Array, action: Array) -> None:
    cosine, sine, speed = (float(value) for value in observation)
    env.state = np.array([math.atan2(sine, cosine), speed])
    env.last_u = float(np.clip(action.reshape(-1)[0], -2.0, 2.0))


def _set_acrobot(env: Any, observation: Array, _: Array) -> None:
    cosine_1, sine_1, cosine_2, sine_2, speed_1, speed_2 = (float(value) for value in observation)
    env.state = np.array([math.atan2(sine_1, cosine_1), math.atan2(sine_2, cosine_2), speed_1, speed_2])


_STATES: Mapping[str | None, tuple[int, Callable[[Any, Array, Array], None]]] = {
    "CartPole-v1": (4, _set_whole),
    "Pendulum-v1": (3, _set_pendulum),
    "Acrobot-v1": (6, _set_acrobot),
    "MountainCar-v0": (2, _set_whole),
    "MountainCarContinuous-v0": (2, _set_whole),
}


def _env_frames(env_id: str | None, observations: Array, actions: Array) -> tuple[Frames, float] | None:
    """None where the observations are not the env's own: stacked, normalised into another shape."""
    size, set_state = _STATES[env_id]
    if observations.shape[1:] != (size,) or observations.dtype.kind != "f" or env_id is None:
        return None
    with _drawing:
        env = _env(env_id)
        fps = float(env.metadata["render_fps"])
        stride = _stride(len(observations), fps)
        drawn = []
        for observation, action in zip(observations[::stride], actions[::stride], strict=True):
            set_state(env.unwrapped, observation, action)
            drawn.append(env.unwrapped.render())
    return np.stack(drawn).astype(np.uint8, copy=False), fps / stride


def _env(env_id: str) -> Any:
    if env_id not in _envs:
        import gymnasium as gym

        # Nothing is shown or heard on this machine.
        for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
            os.environ.setdefault(name, "dummy")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        env = gym.make(env_id, render_mode="rgb_array")
        env.reset(seed=0)
        _envs[env_id] = env
    return _envs[env_id]


def _seen_pictures(observations: Array) -> Frames | None:
    """Observations that are pictures: [T, H, W], [T, H, W, C] or [T, C, H, W]; of a stack, the newest."""
    if observations.dtype != np.uint8 or observations.ndim not in (3, 4) or min(observations.shape[1:3]) < 1:
        return None
    pictures = observations
    if pictures.ndim == 4 and pictures.shape[1] <= 4 < min(pictures.shape[2:]):
        pictures = np.moveaxis(pictures, 1, -1)
    if pictures.ndim == 4 and pictures.shape[-1] != 3:
        pictures = pictures[..., -1]
    if min(pictures.shape[1:3]) < 8:
        return None
    return np.repeat(pictures[..., None], 3, axis=-1) if pictures.ndim == 3 else pictures


def _plot(segment: Segment, scale: Sequence[Segment]) -> Frames:
    """One frame: each component a curve, [H, W, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    def components(of: Segment) -> Array:
        return of.observations.array().reshape(of.num_steps, -1)[:, :_PLOTTED].astype(np.float64)

    width, height, left, gap = MAX_WIDTH, 200, 48, 16
    everything = np.concatenate([components(each) for each in scale])
    low, high = float(everything.min()), float(everything.max())
    span = (high - low) or 1.0
    picture = Image.new("RGB", (width, height), "#ffffff")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    longest = max(each.num_steps for each in scale)

    def at(step: int, value: float) -> tuple[float, float]:
        x = left + (width - left - gap) * step / max(longest - 1, 1)
        return x, height - gap - (height - 2 * gap) * (value - low) / span

    for value in (low, (low + high) / 2, high):
        y = at(0, value)[1]
        pen.line([(left, y), (width - gap, y)], fill="#e3e4e1")
        pen.text((left - 4, y), f"{value:.2g}", fill="#666d76", font=font, anchor="rm")
    for number, curve in enumerate(components(segment).T):
        points = [at(step, float(value)) for step, value in enumerate(curve)]
        colour = _COLOURS[number % len(_COLOURS)]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2, joint="curve")
        x, y = points[-1]
        pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
        pen.text((x + 5, y), str(number + 1), fill=colour, font=font, anchor="lm")  # not by its colour alone
    return np.asarray(picture)
