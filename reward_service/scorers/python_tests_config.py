"""The settings of tests that completions in Python have to pass."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.sandbox.limits import Limits


class PythonTestsConfig(Strict):
    """How many of the metadata's tests the response's code passes."""

    kind: Literal["python_tests"] = "python_tests"
    tests_key: str = Field(
        default="tests",
        description="where the metadata have the tests: Python (a text, or a list of them), or a list of "
        '{"stdin": ..., "stdout": ...}',
    )
    preamble_key: str = Field(
        default="preamble",
        description="where the metadata may have code that runs before it; what that defines is the tests' own",
    )
    entry_point_key: str = Field(
        default="entry_point", description="where the metadata may name the function, if it is called like a builtin"
    )
    code: Literal["fenced", "whole"] = Field(
        default="fenced", description="the last fenced block of Python, else the whole response; or always the whole"
    )
    prompt_is_code: bool = Field(default=False, description="the code goes on where the prompt ends (HumanEval)")
    score: Literal["all", "fraction"] = Field(default="all", description="1 where all tests pass; or the share that do")
    output: Literal["lines", "words", "exact"] = Field(
        default="lines", description="printed lines are equal but for white space at their ends; words are; all is"
    )
    sandbox: Literal["required", "unsafe"] = Field(
        default="required", description="unsafe: run code even where this machine cannot contain it"
    )
    limits: Limits = Limits()
    concurrency: int = Field(default=2, ge=1, le=256, description="items run at once")
