"""What tests see of the code they test, where it is no plain value: a `Remote`, which is asked but never trusted to say
what it is equal to. Runs inside the sandbox of the tests, from the standard library alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any, NamedTuple, Protocol

from rollcall.reward_service.sandbox.plain_values import PLAIN_ATTRIBUTES, PLAIN_METHODS
from rollcall.reward_service.sandbox.solution_channel import BINARY, COMPARISONS, OPERATIONS, UNARY


class Words(NamedTuple):
    """Attributes that values of the tests' own have: plain values, and objects of the preamble's classes."""

    attributes: frozenset[str] = PLAIN_ATTRIBUTES
    methods: frozenset[str] = PLAIN_METHODS


class End(Protocol):
    """What carries questions to the code and brings plain answers."""

    words: Words

    def call(self, target: Remote, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any: ...

    def operate(self, name: str, *arguments: object) -> Any: ...

    def step(self, name: str, *arguments: object) -> tuple[bool, Any]:
        """Whether it has ended, and the value."""


class Inside:
    """Of a Remote. Another one each time that the thing comes over: how tests treat `s` says nothing of what a method
    of `s` returns, be it `s` itself."""

    __slots__ = ("base", "claims", "end", "iterator", "known", "makes", "number", "read")

    def __init__(self, end: End, number: int, base: tuple[Any, ...], *, iterator: bool, claims: type | None) -> None:
        self.end, self.number, self.iterator = end, number, iterator
        self.base = base  # the plain value in it, if there is one
        self.claims = claims  # a class of the preamble
        self.known = False  # the tests treat it as an object of the code's own
        self.makes = False  # ... and whatever comes of calling it
        self.read: list[Any] | None = None  # all that it holds, once that is known


class Remote:
    """Something of the other end that is no plain value: a function, a class, an object, an iterator.

    It is never compared with a plain value but through the plain value in it (of a namedtuple, say): its own __eq__
    could claim to be equal to anything. Nor is one that tests take for a plain value asked by a plain value's methods:
    its own endswith could say yes to anything. Only one that the tests treat as an object of the code's own (they make
    it by calling a class, or have read an attribute that no value of theirs has) does all that its class defines. Any
    other is a function to call, an iterator to go through, or what it held when it was first read.
    """

    __slots__ = ("_Remote__inside",)

    def __init__(self, inside: Inside) -> None:
        object.__setattr__(self, "_Remote__inside", inside)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        inside = inside_of(self)
        return inside.claims or (type(inside.base[0]) if inside.base else Remote)

    def __call__(self, *arguments: object, **named: object) -> Any:
        inside = inside_of(self)
        return _made(inside.end.call(self, arguments, named), known=inside.makes)

    def __getattr__(self, name: str) -> Any:
        inside = inside_of(self)
        if not inside.known:
            if inside.base and hasattr(inside.base[0], name):
                return getattr(inside.base[0], name)
            if name in inside.end.words.methods:
                raise AttributeError(f"{name}() is asked of a value of the tests' own kinds, and the code gave none")
        found = inside.end.operate("getattr", self, name)
        if not inside.base and name not in inside.end.words.attributes and not name.startswith("__"):
            inside.known = True
        return found

    def __setattr__(self, name: str, value: object) -> None:
        inside = inside_of(self)
        inside.end.operate("setattr", self, name, value)
        inside.known = True

    def __delattr__(self, name: str) -> None:
        inside_of(self).end.operate("delattr", self, name)

    def __iter__(self) -> Iterator[Any]:
        inside = inside_of(self)
        if inside.iterator:
            return self.__rest()
        if inside.known:
            return self.__known()
        return iter(held(self))

    def __known(self) -> Iterator[Any]:
        yield from inside_of(self).end.operate("iter", self)

    def __next__(self) -> Any:
        ended, value = inside_of(self).end.step("next", self)
        if ended:
            raise StopIteration
        return value

    def __rest(self) -> Iterator[Any]:
        end = inside_of(self).end
        while True:
            ended, value = end.step("next", self)
            if ended:
                return
            yield value

    def __instancecheck__(self, instance: object) -> bool:
        return type(instance) is Remote and inside_of(self).end.operate("isinstance", instance, self) is True

    def __subclasscheck__(self, kind: object) -> bool:
        return type(kind) is Remote and inside_of(self).end.operate("issubclass", kind, self) is True

    def __hash__(self) -> int:
        inside = inside_of(self)
        if inside.base:
            return hash(inside.base[0])
        return hash(inside.end.operate("hash", self)) if inside.known else hash(inside.number)

    def __copy__(self) -> Any:
        return _made(inside_of(self).end.operate("copy", self), known=inside_of(self).known)

    def __deepcopy__(self, _: object) -> Any:
        return _made(inside_of(self).end.operate("deepcopy", self), known=inside_of(self).known)

    def __enter__(self) -> Any:
        return _made(inside_of(self).end.operate("enter", self), known=inside_of(self).known)

    def __exit__(self, *exception: object) -> None:
        """Returns None: what a test asserts within it is not swallowed."""
        inside_of(self).end.operate("exit", self)


def same(one: object, other: object) -> bool:
    """What `is` asks of plain values, and of Remotes."""
    return one is other or (
        type(one) is Remote and type(other) is Remote and inside_of(one).number == inside_of(other).number
    )


def inside_of(remote: object) -> Inside:
    inside: Inside = object.__getattribute__(remote, "_Remote__inside")
    return inside


def held(remote: Remote) -> Any:
    """The plain value in its place, of one that is no object of the code's own: else its length, its elements and its
    order could each say another thing.

    Raises:
      TypeError: there is none.
    """
    inside = inside_of(remote)
    if inside.base:
        return inside.base[0]
    if inside.iterator:
        raise TypeError("an iterator has no length and no elements by number")
    if inside.read is None:
        elements = inside.end.operate("iter", remote)
        inside.read = list(elements)
    return inside.read


def _made(value: Any, *, known: bool = True) -> Any:
    if known and type(value) is Remote:
        inside_of(value).known = True
    return value


def generator(end: End, remote: Remote) -> Generator[Any, Any, Any]:
    """A generator of this side that asks the one over there."""
    sent = None
    while True:
        ended, value = end.step("send", remote, sent)
        if ended:
            return value
        sent = yield value


def coroutine(end: End, remote: Remote) -> Coroutine[Any, Any, Any]:
    async def awaited() -> Any:
        return end.operate("await", remote)

    return awaited()


async def async_generator(end: End, remote: Remote) -> AsyncIterator[Any]:
    while True:
        ended, value = end.step("anext", remote)
        if ended:
            return
        yield value


def _asked(name: str) -> Callable[..., Any]:
    def method(self: Remote, *arguments: object) -> Any:
        inside = inside_of(self)
        if inside.base and not inside.known and name not in ("str", "repr", "format"):
            return OPERATIONS[name](inside.base[0], *arguments)
        return _made(inside.end.operate(name, self, *arguments), known=inside.known)

    return method


def _of_container(name: str) -> Callable[..., Any]:
    def method(self: Remote, *arguments: object) -> Any:
        inside = inside_of(self)
        if inside.known:
            return inside.end.operate(name, self, *arguments)
        if name == "contains" and inside.iterator:
            return any(element is arguments[0] or element == arguments[0] for element in self)
        return OPERATIONS[name](held(self), *arguments)

    return method


def _reckoned(name: str, *, swapped: bool) -> Callable[[Remote, Any], Any]:
    def method(self: Remote, other: object) -> Any:
        inside = inside_of(self)
        another = inside_of(other) if type(other) is Remote else None
        if inside.base and (another is None or another.base):
            value = other if another is None else another.base[0]
            return OPERATIONS[name](value, inside.base[0]) if swapped else OPERATIONS[name](inside.base[0], value)
        if not inside.known and not (another is not None and another.known):
            return NotImplemented
        return _made(inside.end.operate(name, *((other, self) if swapped else (self, other))))

    return method


def _compared(name: str) -> Callable[[Remote, Any], Any]:
    def method(self: Remote, other: object) -> Any:
        inside = inside_of(self)
        if type(other) is not Remote:
            return getattr(_base_now(self), f"__{name}__")(other) if inside.base else NotImplemented
        another = inside_of(other)
        if inside.base and another.base:
            return getattr(_base_now(self), f"__{name}__")(_base_now(other))
        if inside.number == another.number and name in ("eq", "ne"):
            return name == "eq"
        if not inside.known and not another.known:
            return NotImplemented
        return inside.end.operate(name, self, other) is True

    return method


def _base_now(remote: Remote) -> Any:
    """An object of the code's own may have changed."""
    inside = inside_of(remote)
    return inside.end.operate("base", remote) if inside.known else inside.base[0]


for _name in OPERATIONS:
    _method = f"__{_name.rstrip('_')}__"
    if _name in COMPARISONS:
        setattr(Remote, _method, _compared(_name))
    elif _name in BINARY:
        setattr(Remote, _method, _reckoned(_name, swapped=False))
        setattr(Remote, f"__r{_name.rstrip('_')}__", _reckoned(_name, swapped=True))
    elif _name in (*UNARY, "bool", "int", "float", "complex", "str", "repr", "format", "abs", "round"):
        setattr(Remote, _method, _asked(_name))
    elif _name in ("len", "getitem", "setitem", "delitem", "contains", "reversed"):
        setattr(Remote, _method, _of_container(_name))
