"""Lua as far as the books' scripts use it, translated to Python: so that a simulated Redis runs the very scripts that a
real one runs. Knows no Redis. What it does not know it refuses; a test holds both against each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_TOKEN = re.compile(
    r"""\s+|--[^\n]*|(?P<name>[A-Za-z_]\w*)|(?P<number>\d+)|(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    r"""|(?P<op>\.\.|==|~=|<=|>=|[-+*/%#<>=(){}\[\];:,.])""",
)
_KEYWORDS = frozenset(
    [
        "and",
        "break",
        "do",
        "else",
        "elseif",
        "end",
        "false",
        "for",
        "function",
        "if",
        "in",
        "local",
        "nil",
        "not",
        "or",
        "return",
        "then",
        "true",
        "while",
    ]
)
_BINARY = [["or"], ["and"], ["<", ">", "<=", ">=", "~=", "=="], [".."], ["+", "-"], ["*", "/", "%"]]


class Table:
    """A Lua table; `size` is what # says."""

    __slots__ = ("size", "values")

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self.values: dict[Any, Any] = dict(enumerate(items, start=1))
        self.size = len(self.values)

    def get(self, key: Any) -> Any:
        return self.values.get(key)

    def set(self, key: Any, value: Any) -> None:
        if value is None:
            self.values.pop(key, None)
            while self.size and self.size not in self.values:
                self.size -= 1
            return
        self.values[key] = value
        while self.size + 1 in self.values:
            self.size += 1

    def array(self) -> list[Any]:
        return [self.values[i] for i in range(1, self.size + 1)]


def compiled(script: str) -> Callable[[Table, Table, Callable[..., Any]], Any]:
    """The script as a function of KEYS, ARGV and redis.call.

    Raises:
      ValueError: it uses what is not known here.
    """
    source = _Translator(script).translate()
    names: dict[str, Any] = dict(_RUNTIME)
    exec(compile(source, "<lua>", "exec"), names)
    return names["script"]  # type: ignore[no-any-return]


class _Translator:
    def __init__(self, script: str) -> None:
        self._tokens = list(_tokens(script))
        self._at = 0
        self._lines: list[str] = []
        self._depth = 1
        self._scopes: list[dict[str, str]] = [{}]  # Lua's name -> Python's
        self._functions: list[set[str]] = [set()]  # names of Python that each function around here owns
        self._number = 0

    def translate(self) -> str:
        self._block(frozenset())
        if self._peek() is not None:
            raise ValueError(f"lua: {self._peek()} is not known here")
        head = ["def script(KEYS, ARGV, _call):", " redis = Table(); redis.set('call', _call)"]
        return "\n".join([*head, *self._lines, " return None"])

    # Tokens.

    def _peek(self) -> str | None:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise ValueError("lua: it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, text: str) -> bool:
        if self._peek() == text:
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        found = self._next()[1]
        if found != text:
            raise ValueError(f"lua: {found} where {text} was expected")

    def _name(self) -> str:
        kind, text = self._next()
        if kind != "name":
            raise ValueError(f"lua: {text} is no name")
        return text

    # Statements.

    def _emit(self, line: str) -> None:
        self._lines.append(" " * self._depth + line)

    def _declare(self, name: str) -> str:
        self._number += 1
        python = f"{name}_{self._number}"
        self._scopes[-1][name] = python
        self._functions[-1].add(python)
        return python

    def _block(self, ends: frozenset[str]) -> None:
        self._scopes.append({})
        before = len(self._lines)
        while self._peek() is not None and self._peek() not in ends:
            self._statement()
            self._take(";")
        if len(self._lines) == before:
            self._emit("pass")
        self._scopes.pop()

    def _indented(self, ends: frozenset[str]) -> None:
        self._depth += 1
        self._block(ends)
        self._depth -= 1

    def _statement(self) -> None:
        if self._take("local"):
            self._local()
        elif self._take("if"):
            self._if()
        elif self._take("while"):
            self._emit(f"while _true({self._expression()}):")
            self._expect("do")
            self._indented(frozenset({"end"}))
            self._expect("end")
        elif self._take("for"):
            self._for()
        elif self._take("function"):
            table, names = self._resolve(self._name()), []
            while self._take("."):
                names.append(self._name())
            python = self._function(self._declare("function"))
            self._emit(f"{table}.set({names[0]!r}, {python})")
        elif self._take("return"):
            values = [] if self._peek() in (None, "end", "else", "elseif") else self._expressions()
            self._emit(f"return {_several(values)}")
        elif self._take("break"):
            self._emit("break")
        else:
            self._assignment_or_call()

    def _local(self) -> None:
        if self._take("function"):
            self._function(self._declare(self._name()))
            return
        names = [self._name()]
        while self._take(","):
            names.append(self._name())
        values = self._expressions() if self._take("=") else ["None"]
        self._assign([self._declare(name) for name in names], values)

    def _assign(self, targets: list[str], values: list[str]) -> None:
        if len(targets) == len(values) == 1:
            self._emit(f"{targets[0]} = _one({values[0]})" if _is_call(values[0]) else f"{targets[0]} = {values[0]}")
        else:
            self._emit(f"{', '.join(targets)}, = _adjust({len(targets)}, [{_spread(values)}])")

    def _assignment_or_call(self) -> None:
        target = self._suffixed()
        if not self._take("="):
            self._emit(target)
            return
        value = _one(self._expression())
        if target.startswith("_get("):
            self._emit(f"_set({target[5:-1]}, {value})")
            return
        if target not in self._functions[-1]:
            self._emit(f"nonlocal {target}")
        self._emit(f"{target} = {value}")

    def _if(self) -> None:
        self._emit(f"if _true({self._expression()}):")
        self._expect("then")
        ends = frozenset({"elseif", "else", "end"})
        self._indented(ends)
        if self._take("elseif"):
            self._emit("else:")
            self._depth += 1
            self._if()
            self._depth -= 1
            return
        if self._take("else"):
            self._emit("else:")
            self._indented(ends)
        self._expect("end")

    def _for(self) -> None:
        names = [self._name()]
        while self._take(","):
            names.append(self._name())
        numeric = self._take("=")
        if not numeric:
            self._expect("in")
        values = self._expressions()
        self._expect("do")
        self._scopes.append({})
        targets = ", ".join(self._declare(name) for name in names)
        if numeric:
            self._emit(f"for {targets} in _count({', '.join(map(_one, values))}):")
        else:
            self._emit(f"for {targets}, in _pad({len(names)}, {values[0]}):")
        self._indented(frozenset({"end"}))
        self._scopes.pop()
        self._expect("end")

    def _function(self, python: str) -> str:
        """Its parameters and its body."""
        self._expect("(")
        self._scopes.append({})
        self._functions.append(set())
        parameters = []
        while not self._take(")"):
            parameters.append(self._declare(self._name()))
            self._take(",")
        self._emit(f"def {python}({''.join(f'{name}=None, ' for name in parameters)}*_):")
        self._indented(frozenset({"end"}))
        self._expect("end")
        self._functions.pop()
        self._scopes.pop()
        return python

    # Expressions.

    def _expressions(self) -> list[str]:
        values = [self._expression()]
        while self._take(","):
            values.append(self._expression())
        return values

    def _expression(self, level: int = 0) -> str:
        if level == len(_BINARY):
            return self._unary()
        left = self._expression(level + 1)
        while (operator := self._peek()) in _BINARY[level]:
            self._at += 1
            # .. binds to the right, and gives the same either way
            left = self._binary(str(operator), _one(left), _one(self._expression(level + 1)))
        return left

    def _binary(self, operator: str, left: str, right: str) -> str:
        if operator in ("and", "or"):
            self._number += 1
            held = f"_held_{self._number}"
            return f"({right} if {'' if operator == 'and' else 'not '}_true({held} := {left}) else {held})"
        if operator in ("+", "-", "*", "%"):
            return f"(_number({left}) {operator} _number({right}))"
        if operator == "/":
            raise ValueError("lua: / is not known here")
        return (
            f"_concat({left}, {right})" if operator == ".." else f"({left} {_PYTHON.get(operator, operator)} {right})"
        )

    def _unary(self) -> str:
        if self._take("not"):
            return f"(not _true({_one(self._unary())}))"
        if self._take("#"):
            return f"_size({_one(self._unary())})"
        if self._take("-"):
            return f"(-_number({_one(self._unary())}))"
        return self._suffixed()

    def _suffixed(self) -> str:
        value = self._primary()
        while True:
            if self._take("."):
                value = f"_get({_one(value)}, {self._name()!r})"
            elif self._take("["):
                value = f"_get({_one(value)}, {_one(self._expression())})"
                self._expect("]")
            elif self._take("("):
                values = [] if self._peek() == ")" else self._expressions()
                self._expect(")")
                value = f"_invoke({_one(value)}, {_spread(values)})"
            else:
                return value

    def _primary(self) -> str:
        kind, text = self._next()
        if kind in ("number", "string"):
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if text == "(":
            value = _one(self._expression())
            self._expect(")")
            return f"({value})"
        if text == "{":
            return self._table()
        if kind != "name":
            raise ValueError(f"lua: {text} is not known here")
        return self._resolve(text)

    def _table(self) -> str:
        values, named = [], []
        while not self._take("}"):
            if self._at + 1 < len(self._tokens) and self._tokens[self._at + 1][1] == "=" and self._peek() != "[":
                name = self._name()
                self._expect("=")
                named.append(f"({name!r}, {_one(self._expression())})")
            else:
                values.append(self._expression())
            if not self._take(","):
                self._take(";")
        return f"_table([{_spread(values)}], [{', '.join(named)}])"

    def _resolve(self, name: str) -> str:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        if name in ("KEYS", "ARGV", "redis"):
            return name
        if f"lua_{name}" not in _RUNTIME:
            raise ValueError(f"lua: {name} is not known here")
        return f"lua_{name}"


_PYTHON = {"~=": "!="}
_CONSTANTS = {"nil": "None", "true": "True", "false": "False"}


def _tokens(script: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(script):
        found = _TOKEN.match(script, at)
        if found is None:
            raise ValueError(f"lua: {script[at : at + 20]!r} is not known here")
        at = found.end()
        if found.lastgroup is not None:
            kind = "keyword" if found[0] in _KEYWORDS else found.lastgroup
            yield kind, found[0]


def _is_call(value: str) -> bool:
    return value.startswith("_invoke(")


def _one(value: str) -> str:
    return f"_first({value})" if _is_call(value) else value


def _spread(values: list[str]) -> str:
    """All of them, of the last all that it gives."""
    if not values:
        return ""
    *firsts, last = values
    return ", ".join([*map(_one, firsts), f"*_all({last})" if _is_call(last) else last])


def _several(values: list[str]) -> str:
    if len(values) == 1:
        return values[0]
    return f"({_spread(values)},)" if values else "None"


# What runs beside it.


def _true(value: Any) -> bool:
    return value is not None and value is not False


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, tuple) else value


def _all(value: Any) -> Any:
    return value if isinstance(value, tuple) else (value,)


def _adjust(number: int, values: list[Any]) -> list[Any]:
    return (values + [None] * number)[:number]


def _get(table: Any, key: Any) -> Any:
    return table.get(key)


def _set(table: Any, key: Any, value: Any) -> None:
    table.set(key, value)


def _invoke(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else int(value)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        raise ValueError(f"lua: {value} in a text")
    return str(value)


def _concat(left: Any, right: Any) -> str:
    return _text(left) + _text(right)


def _size(value: Any) -> int:
    return value.size if isinstance(value, Table) else len(value)


def _count(first: Any, last: Any, by: int = 1) -> range:
    return range(_number(first), _number(last) + 1, by)


def _pad(number: int, iterator: Iterable[tuple[Any, ...]]) -> Iterator[list[Any]]:
    for values in iterator:
        yield _adjust(number, list(values))


def _table(values: list[Any], named: list[tuple[Any, Any]]) -> Table:
    table = Table()
    for position, value in enumerate(values, start=1):
        table.set(position, value)
    for name, value in named:
        table.set(name, value)
    return table


def _library(**functions: Any) -> Table:
    return _table([], list(functions.items()))


def _tonumber(value: Any = None, *_: Any) -> Any:
    try:
        return value if isinstance(value, int | float) else int(value)
    except (TypeError, ValueError):
        return None


def _pattern(text: str) -> re.Pattern[str]:
    """A Lua pattern as a regular expression."""
    regular, at = "", 0
    while at < len(text):
        letter = text[at]
        if letter == "%":
            at += 1
            regular += {"d": "[0-9]", "s": r"\s", "w": r"\w"}.get(text[at]) or re.escape(text[at])
        elif letter == "[":
            end = text.index("]", at + 2)
            regular += text[at : end + 1].replace("%", "\\")
            at = end
        elif letter == "-":
            regular += "*?"
        elif letter in "^$()+*.?":
            regular += letter
        else:
            regular += re.escape(letter)
        at += 1
    return re.compile(regular, re.DOTALL)


_patterns: dict[str, re.Pattern[str]] = {}


def _compiled_pattern(text: str) -> re.Pattern[str]:
    if text not in _patterns:
        _patterns[text] = _pattern(text)
    return _patterns[text]


def _match(text: Any, pattern: str) -> Any:
    found = _compiled_pattern(pattern).search(_text(text))
    return None if found is None else found.groups() or found[0]


def _gmatch(text: Any, pattern: str) -> Iterator[tuple[Any, ...]]:
    for found in _compiled_pattern(pattern).finditer(_text(text)):
        yield found.groups() or (found[0],)


def _format(pattern: str, *values: Any) -> str:
    kinds = re.findall("%([ds])", pattern)
    return pattern % tuple(
        _number(value) if kind == "d" else _text(value) for kind, value in zip(kinds, values, strict=True)
    )


def _insert(table: Table, *arguments: Any) -> None:
    values = table.array()
    values.insert(arguments[0] - 1 if len(arguments) == 2 else len(values), arguments[-1])
    table.values.update(enumerate(values, start=1))
    table.size = len(values)


def _unpack(table: Table, first: int = 1, last: int | None = None) -> tuple[Any, ...]:
    return tuple(table.get(i) for i in range(first, (table.size if last is None else last) + 1))


_RUNTIME: dict[str, Any] = {
    **{f.__name__: f for f in (_true, _first, _all, _adjust, _get, _set, _invoke, _number, _concat, _size, _count)},
    **{f.__name__: f for f in (_pad, _table)},
    "_one": _first,
    "Table": Table,
    "lua_tonumber": _tonumber,
    "lua_tostring": lambda value=None, *_: _text(value),
    "lua_ipairs": lambda table: enumerate(table.array(), start=1),
    "lua_pairs": lambda table: list(table.values.items()),
    "lua_unpack": _unpack,
    "lua_math": _library(max=lambda *values: max(values), min=lambda *values: min(values)),
    "lua_string": _library(match=_match, gmatch=_gmatch, format=_format),
    "lua_table": _library(
        concat=lambda table, by="": by.join(map(_text, table.array())), insert=_insert, unpack=_unpack
    ),
}
