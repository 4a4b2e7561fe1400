"""What a class or a function of a program is, by its content: the same code with the same values has the same
fingerprint in every process, and other code has another. Nothing is called or changed for it."""

from __future__ import annotations

import hashlib
import math
import pickle
import types
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

_MAX_DEPTH = 40
_NOT_CONTENT = {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__slots__"}
_NOT_CONTENT |= {"__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl", "__parameters__"}


class _Opaque(Exception):
    """It holds something that is not known by its content."""


def fingerprint(thing: object) -> str | None:
    """Eight hexadecimal digits. None: it holds what only this process can tell apart: a lock, say."""
    hashed = hashlib.sha256()
    try:
        for part in _parts(thing, {}, 0):
            hashed.update(part)
            hashed.update(b"\0")
    except _Opaque:
        return None
    return hashed.hexdigest()[:8]


def _parts(thing: object, seen: dict[int, int], depth: int) -> Iterator[bytes]:
    if thing is None or isinstance(thing, bool | int | complex | str | bytes | types.EllipsisType):
        yield repr((type(thing).__name__, thing)).encode(errors="surrogatepass")
        return
    if isinstance(thing, float):
        yield b"nan" if math.isnan(thing) else repr(thing).encode()
        return
    if id(thing) in seen:
        yield f"again {seen[id(thing)]}".encode()
        return
    if depth > _MAX_DEPTH:
        raise _Opaque
    seen[id(thing)] = len(seen)
    for inner in _inside(thing):
        yield from _parts(inner, seen, depth + 1)


def _inside(thing: object) -> Iterator[object]:
    """The plain values, and what else it consists of."""
    yield type(thing).__name__
    if isinstance(thing, types.ModuleType):
        yield thing.__name__
    elif isinstance(thing, tuple | list):
        yield from thing
    elif isinstance(thing, set | frozenset):
        yield sorted(map(repr, thing))
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from (key, value)
    elif isinstance(thing, types.CodeType):
        yield from (thing.co_code, thing.co_names, thing.co_varnames, thing.co_freevars, thing.co_argcount)
        yield thing.co_consts
    elif isinstance(thing, types.FunctionType):
        yield from _of_function(thing)
    elif isinstance(thing, type):
        yield from _of_class(thing)
    elif isinstance(thing, staticmethod | classmethod | types.MethodType):
        yield thing.__func__
    elif isinstance(thing, property):
        yield from (thing.fget, thing.fset, thing.fdel)
    elif isinstance(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
        yield thing.__qualname__
    elif isinstance(thing, types.MemberDescriptorType | types.GetSetDescriptorType):
        yield thing.__name__
    elif hasattr(thing, "__array__"):  # of numpy, torch, pandas, pyarrow: neither attributes nor repr show all of it
        yield _values(thing)
    elif hasattr(thing, "__dict__") and not _has_hidden_state(thing):
        yield f"{type(thing).__module__}.{type(thing).__qualname__}"
        yield dict(sorted(vars(thing).items()))
    elif type(thing).__repr__ is not object.__repr__ and not _has_hidden_state(thing):
        yield repr(thing)
    else:
        raise _Opaque


def _values(thing: object) -> bytes:
    """Of an array, a tensor or a table. (A tensor's own pickle names where it is in memory.)"""
    tensor: Any = thing if hasattr(thing, "detach") else None
    try:
        return pickle.dumps(thing if tensor is None else tensor.detach().cpu().numpy(), protocol=5)
    except Exception:  # of whatever library: a tensor in bfloat16, an array of locks
        raise _Opaque from None


def _of_function(thing: types.FunctionType) -> Iterator[object]:
    """A function of a module that others import is its name; any other its code, and what that code refers to."""
    yield thing.__name__
    if thing.__module__ != "__main__" and thing.__qualname__.isidentifier():
        yield thing.__module__
    yield thing.__code__
    yield from (thing.__defaults__, thing.__kwdefaults__)
    for cell in thing.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet: the class around a method that calls super()
            yield "empty"
    for name in _names_in(thing.__code__):
        if name in thing.__globals__:
            yield from (name, _referred(thing.__globals__[name]))


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names_in(inner)


def _referred(thing: object) -> object:
    """A global of the program's own as it is, and one that a module has at its top by its name."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if isinstance(module, str) and module != "__main__" and isinstance(name, str) and "<" not in name:
        return f"{module}.{name}"
    return thing


def _of_class(thing: type) -> Iterator[object]:
    yield thing.__name__
    for base in thing.__bases__:
        yield _referred(base)
    for name, value in sorted(vars(thing).items()):
        if name in _NOT_CONTENT or name.startswith(("__pydantic_", "model_", "__dataclass_")):
            continue
        yield from (name, _referred(value) if isinstance(value, type) else value)
    fields = getattr(thing, "model_fields", None)  # of a pydantic model, which keeps them out of its attributes
    if isinstance(fields, Mapping):
        yield sorted(f"{name}: {field!r}" for name, field in fields.items())


def _has_hidden_state(thing: object) -> bool:
    """Of C, which neither its attributes nor its repr show: locks, files, generators."""
    return type(thing).__module__ in {
        "_thread",
        "threading",
        "_io",
        "_random",
        "_socket",
        "_queue",
    } or " at 0x" in repr(thing)
