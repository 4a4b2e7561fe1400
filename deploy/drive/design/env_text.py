"""What a model is told of an env: its spaces, its docstring, its source; without what speaks of its reward, which the
model is to write anew. What is left out is found by name: an env that calls its reward otherwise needs design.env_text.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from pathlib import Path

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.cluster.errors import BadInput

MAX_CHARACTERS = 40_000
_REWARD = re.compile(r"reward|(?<![a-z])rew(?![a-z])|(?<![a-z])costs?(?![a-z])", re.IGNORECASE)
_NO_DYNAMICS = ("render", "close")
_HEADING = re.compile(r"^(#+ |\w.*\n[-=~^]{3,}$)", re.MULTILINE)


def env_text(config: EnvConfig, file: str | None) -> str:
    """Raises BadInput: where the env cannot be made, or the file not be read."""
    env = make_env(config)
    try:
        spaces = f"Observation space: {env.observation_space}\nAction space: {env.action_space}"
        kind = type(env.unwrapped)
    finally:
        env.close()
    if file is not None:
        return f"{spaces}\n\n{_read(file)}"
    docstring = without_reward(inspect.getdoc(kind) or "")
    try:
        source = source_without_reward(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        source = ""
    parts = [spaces, docstring, f"Its source, in part:\n\n{source}" if source else ""]
    return "\n\n".join(filter(None, parts))[:MAX_CHARACTERS]


def without_reward(text: str) -> str:
    """Documentation without the sections and the paragraphs that speak of a reward."""
    starts = [0, *(match.start() for match in _HEADING.finditer(text)), len(text)]
    sections = [text[a:b] for a, b in itertools.pairwise(starts)]
    kept = [part for part in sections if not _REWARD.search(part.lstrip().partition("\n")[0])]
    paragraphs = re.split(r"\n\s*\n", "\n\n".join(part.strip("\n") for part in kept))
    return "\n\n".join(paragraph for paragraph in paragraphs if not _REWARD.search(paragraph)).strip()


def source_without_reward(source: str) -> str:
    """A class's source without comments, docstrings, and the statements that name a reward."""
    tree = ast.fix_missing_locations(_Silent().visit(ast.parse(source)))
    return ast.unparse(tree)


class _Silent(ast.NodeTransformer):
    """Takes out what names a reward: a statement, a whole function, an argument, an element of what step returns; and
    what only draws."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        if _REWARD.search(node.name) or node.name in _NO_DYNAMICS:
            return None
        arguments = node.args
        first_default = len(arguments.args) - len(arguments.defaults)
        kept = [i for i, argument in enumerate(arguments.args) if not _REWARD.search(argument.arg)]
        arguments.defaults = [arguments.defaults[i - first_default] for i in kept if i >= first_default]
        arguments.args = [arguments.args[i] for i in kept]
        node.body = self._body(_undocumented(node.body)) or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = self._body(_undocumented(node.body)) or [ast.Pass()]
        return node

    def _body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        return [visited for statement in statements if (visited := self._statement(statement)) is not None]

    def _statement(self, node: ast.stmt) -> ast.stmt | None:
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            elements = node.value.elts
            node.value.elts = [ast.Constant(...) if _names_reward(element) else element for element in elements]
            return node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            visited: ast.stmt | None = self.visit(node)
            return visited
        blocks = [name for name in ("body", "orelse", "finalbody") if getattr(node, name, None)]
        if blocks and not isinstance(node, ast.Match | ast.Try):
            head = [getattr(node, name, None) for name in ("test", "iter", "target")]
            if any(part is not None and _names_reward(part) for part in head):
                return None
            for name in blocks:
                kept = self._body(getattr(node, name))
                setattr(node, name, kept or ([ast.Pass()] if name == "body" else []))
            return node
        return None if _names_reward(node) else node


def _undocumented(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if documented else body


def _names_reward(node: ast.AST) -> bool:
    return bool(_REWARD.search(ast.unparse(node)))


def _read(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")[:MAX_CHARACTERS]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"design.env_text = {file!r}: cannot be read ({error}): name a text file") from None
