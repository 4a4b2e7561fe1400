# ruff: noqa: E501 (answers are as long as they are)
"""Answers that want to pass without solving: names of the tests' taken over, control flow raised into them, objects that
lie, and attacks upon the channel, the interpreter and the processes. All are scored in one batch, in the real sandbox;
each problem's honest answer shows that its tests can be passed."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import pytest

from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.sandbox.limits import Limits
from rollcall.reward_service.scorer import Outcome, Score
from rollcall.reward_service.scorers.building import build_scorer
from rollcall.reward_service.scorers.python_tests import PythonTestsScorer
from rollcall.reward_service.scorers.python_tests_config import PythonTestsConfig
from tests.needs import lack

LIMITS = Limits(wall_s=5, cpu_s=2, memory_bytes=256 << 20, output_bytes=10_000)


class Problem(NamedTuple):
    honest: str
    tests: list[str]
    preamble: str = ""
    prompt: str = ""  # where it is code that the answer goes on with


SQUARE = Problem(
    "def f(x): return x * x",
    [
        "assert f(7) == 49",
        "import math\nassert math.isclose(f(7), 49)",
        "assert math.isclose(f(7), 49)",
        "import unittest\nunittest.TestCase().assertEqual(f(7), 49)",
        "assert all(map(lambda x: f(x) == x * x, [6, 7]))",
        "assert all(f(x) == x * x for x in [6, 7])",
        "assert abs(f(7) - 49) < 1",
        "assert f(7) - f(6) == 13",
        "def check(candidate):\n    assert candidate(7) == 49\ncheck(f)",
    ],
)
HELPED = Problem(
    "def f(x): return x * x",
    [
        "assert close(f(7), 49)",
        "verify(f(7), EXPECTED)",
        "assert isclose(f(7), 49)",
        "assert m.isclose(f(7), 49)",
        "assert Counter([f(7)]) == Counter([49])",
        "checker = Checker(49)\nassert checker.accepts(f(7))",
    ],
    """
    import math as m
    from math import isclose
    from collections import Counter
    EXPECTED = 49
    def close(a, b): return abs(a - b) < 1e-6
    def verify(a, b): assert a == b
    class Checker:
        def __init__(self, expected): self.expected = expected
        def accepts(self, value): return value == self.expected
    """,
)
PROMPTED = Problem(
    "    return x * x",
    ["assert close(f(7), 49)"],
    prompt="import math\n\n\ndef close(a, b):\n    return math.isclose(a, b)\n\n\ndef f(x):\n    '''Its square.'''\n",
)
LOOPED = Problem(
    "def f(x): return x * x",
    [
        "assert all(map(lambda x: f(x) == x * x, [6, 7]))",
        "assert not any(map(lambda x: f(x) != x * x, [6, 7]))",
        "assert not list(filter(lambda x: f(x) != x * x, [6, 7]))",
        "for value in map(f, [7]):\n    assert value == 49\n    break\nelse:\n    assert False",
        "class Cases:\n    def __iter__(self): return self\n    def __next__(self):\n        return f(7)\n"
        "assert next(iter(Cases()), 49) == 49",
        "def bad(x):\n    while True:\n        yield f(x)\nassert next(bad(7)) == 49",
        "from itertools import takewhile\n"
        "assert not list(takewhile(bool, map(lambda x: f(x) != x * x, [6])))\nassert f(7) == 49",
        "import contextlib\nwith contextlib.suppress(ValueError):\n    assert f(7) == 49",
        "try:\n    assert f(7) == 49\nexcept (KeyError, StopIteration):\n    raise",
    ],
)
TEXT = Problem(
    "def f(s): return ''.join(reversed(s))",
    [
        "assert f('abc').endswith('a')",
        "assert f('abc').startswith('cb')",
        "assert f('abc').isalpha() and f('abc')[0] == 'c'",
        "assert f('abc').find('ba') == 1",
        "assert 'cb' in f('abc')",
        "r = f('abc')\nassert len(r) == 3 and all(a > b for a, b in zip(r, r[1:]))",
        "assert f('abc').removeprefix('cb') == 'a'",
        "assert isinstance(f('abc'), str) and f('abc') == 'cba'",
        "r = f('abc')\nassert r.count('c') == 1 and r.index('c') == 0",
        "assert not set('cba').symmetric_difference(f('abc')) and f('abc')[0] == 'c'",
        "assert f('abc').__eq__('cba') is True",
        "assert f('abc').__contains__('ba') is True",
    ],
)
SETS = Problem(
    "def f(xs): return {x for x in xs if x > 1}",
    [
        "assert f([1, 2, 3]).issubset({2, 3}) and len(f([1, 2, 3])) == 2",
        "assert {2, 3}.issubset(f([1, 2, 3]))",
        "assert f([1, 2, 3]).issuperset({2, 3})",
        "assert f([1, 2, 3]) - {2, 3} == set() and f([1, 2, 3])",
        "assert f([1, 2, 3]) <= {2, 3} and f([1, 2, 3])",
        "assert f([1, 2, 3]) & {2, 3} == {2, 3}",
        "assert not f([1, 2, 3]) ^ {2, 3}",
        "assert f([1, 2, 3]).intersection({2, 3}) == {2, 3}",
        "assert f([1, 2, 3]).isdisjoint({1, 4}) and 2 in f([1, 2, 3])",
    ],
)
ORDER = Problem(
    "def f(xs): return sorted(xs)",
    [
        "r = f([3, 1, 2])\nassert len(r) == 3 and sorted(r) == [1, 2, 3]"
        " and all(r[i] <= r[i + 1] for i in range(len(r) - 1))",
        "assert f([3, 1, 2]) == f([2, 3, 1]) == [1, 2, 3]",
        "r = f([3, 1, 2])\nassert isinstance(r, list) and r[0] == 1 and r[-1] == 3",
    ],
)
NODES = Problem(
    """
    def f(node):
        last = None
        while node: node.next, last, node = last, node, node.next
        return last
    """,
    [
        "assert f(Node(1, Node(2, Node(3)))) == Node(3, Node(2, Node(1)))",
        "assert values(f(Node(1, Node(2)))) == [2, 1]",
        "assert f(Node(1, Node(2))).equals(Node(2, Node(1)))",
        "assert isinstance(f(Node(1, Node(2))), Node) and f(Node(1, Node(2))).val == 2",
    ],
    """
    class Node:
        def __init__(self, val=0, next=None): self.val, self.next = val, next
        def __eq__(self, other): return other is not None and (self.val, self.next) == (other.val, other.next)
        def equals(self, other): return self == other
    def values(node):
        found = []
        while node: found.append(node.val); node = node.next
        return found
    """,
)
METHODS = Problem(
    "class Solution:\n    def tail(self, s): return s[-2:]",
    [
        "assert Solution().tail('abc').endswith('bc')",
        "r = Solution().tail('abc')\nassert r.endswith('bc')",
        "s = Solution()\nr = s.tail('abc')\nassert r.startswith('bc') and r == 'bc'",
    ],
)
PROBLEMS = {
    "square": SQUARE,
    "helped": HELPED,
    "prompted": PROMPTED,
    "looped": LOOPED,
    "text": TEXT,
    "sets": SETS,
    "order": ORDER,
    "nodes": NODES,
    "methods": METHODS,
}

# Every special method answers whatever helps.
LIAR = """
def yes(*_, **__): return True
def nothing(*_, **__): return 0
names = {f"__{n}__": yes for n in "eq lt le gt ge contains bool instancecheck subclasscheck".split()}
names |= {f"__{n}__": nothing for n in "sub rsub mod rmod xor rxor abs truediv neg pos invert".split()}
names |= {f"__{n}__": lambda self, other=None: other for n in "and rand or ror add radd".split()}
names |= {"__ne__": lambda *_: False, "__hash__": nothing, "__len__": lambda self: 3, "__iter__": lambda self: iter([])}
names |= {"__getitem__": lambda self, i: i, "__getattr__": lambda self, name: yes}
names |= {n: yes for n in ("endswith startswith isalpha issubset issuperset isdisjoint equals tail accepts isdigit"
                           " intersection find count index removeprefix symmetric_difference").split()}
"""
EVERYWHERE = [name for name in PROBLEMS if name != "prompted"]
DEFINED = "class Solution:\n    def tail(self, *_): return made()\ndef f(*_): return made()"

# What is claimed to solve which problems: a piece of code for all that are named.
FORGERIES: dict[str, tuple[list[str], str]] = {
    "the preamble's functions redefined": (
        ["helped"],
        "def close(*_): return True\nverify = isclose = close\ndef f(x): return 0",
    ),
    "the preamble's class replaced": (
        ["helped", "nodes"],
        "class Checker:\n    def __init__(self, *_): pass\n    def accepts(self, *_): return True\n"
        "Node = Counter = lambda *_: 1\ndef values(_): return [2, 1]\ndef f(x): return 1",
    ),
    "the preamble's class changed in place": (
        ["helped", "nodes"],
        """
        try:
            Checker.accepts = lambda *_: True
        except NameError:
            Node.__eq__ = Node.equals = lambda *_: True
        def f(x): return x
        """,
    ),
    "the preamble's constant replaced": (["helped"], "EXPECTED = 0\ndef f(x): return EXPECTED"),
    "the preamble's modules patched": (
        ["helped", "square"],
        "import math\nmath.isclose = lambda *_, **__: True\nm = math\nisclose = math.isclose\ndef f(x): return 0",
    ),
    "a class in a module's place": (
        ["helped", "square"],
        "class math:\n    isclose = staticmethod(lambda *_, **__: True)\nm = math\ndef f(x): return 0",
    ),
    "the prompt's helper redefined": (["prompted"], "    return 0\ndef close(*_): return True"),
    "sys.modules filled with liars": (
        ["square", "helped"],
        """
        import sys, types
        class Liar(types.ModuleType):
            def __getattr__(self, name): return lambda *_, **__: True
        for name in ("math", "unittest", "collections", "itertools", "contextlib"): sys.modules[name] = Liar(name)
        math = sys.modules["math"]
        def f(x): return 0
        """,
    ),
    "builtins written": (
        EVERYWHERE,
        """
        import builtins
        for name in ("all", "any", "len", "isinstance", "abs", "sorted", "set", "map"):
            setattr(builtins, name, lambda *_, **__: True)
        __builtins__["all"] = lambda *_: True
        def f(x): return 0
        class Solution:
            tail = f
        """,
    ),
    "names of tests' own functions": (
        ["square"],
        "def check(_): return True\ncandidate = unittest = map = check\ndef f(x): return 0",
    ),
    "Counter's comparison patched": (
        ["helped"],
        "import collections\ncollections.Counter.__eq__ = lambda *_: True\ndef f(x): return 0",
    ),
    "codecs, json and struct patched": (
        ["square"],
        "import codecs, json, struct\njson.encoder.encode_basestring_ascii = lambda s: '\"{}\"'\n"
        "codecs.lookup('utf-8')\nstruct.pack = lambda *_: b''\njson.dumps = lambda *_: 'true'\ndef f(x): return 0",
    ),
    "StopIteration": (["square", "looped"], "def f(x): raise StopIteration"),
    "StopIteration with the answer in it": (["square", "looped"], "def f(x): raise StopIteration(49)"),
    "a subclass of StopIteration": (
        ["square", "looped"],
        "class Done(StopIteration): pass\ndef f(x): raise Done(49)",
    ),
    "a StopIteration by another name": (
        ["square", "looped"],
        "Done = type('ValueError2', (StopIteration, KeyError), {})\ndef f(x): raise Done",
    ),
    "StopAsyncIteration": (["square", "looped"], "def f(x): raise StopAsyncIteration"),
    "GeneratorExit": (["square", "looped"], "def f(x): raise GeneratorExit"),
    "SystemExit": (["square", "looped"], "def f(x): raise SystemExit"),
    "sys.exit(0)": (["square", "looped"], "import sys\ndef f(x): sys.exit(0)"),
    "KeyboardInterrupt": (["square", "looped"], "def f(x): raise KeyboardInterrupt"),
    "SkipTest": (["square"], "import unittest\ndef f(x): raise unittest.SkipTest('not today')"),
    "an exception that is equal to anything": (
        ["square"],
        "class E(BaseException):\n    def __eq__(self, o): return True\n    def __str__(self): return '49'\n"
        "    args = property(lambda self: (49,))\ndef f(x): raise E",
    ),
    "an exception whose mro lies": (
        ["square", "looped"],
        "class M(type):\n    def mro(cls): return [cls, StopIteration, Exception, BaseException, object]\n"
        "class E(StopIteration, metaclass=M): pass\ndef f(x): raise E",
    ),
    "an object of lies": (EVERYWHERE, LIAR + "made = type('Liar', (), names)\n" + DEFINED),
    "a class of lies": (
        EVERYWHERE,
        LIAR + "M = type('M', (type,), names)\ndef made(): return M('Liar', (), names)\n" + DEFINED,
    ),
    "a text of lies": (EVERYWHERE, LIAR + "made = type('Liar', (str,), names)\n" + DEFINED),
    "an int of lies": (EVERYWHERE, LIAR + "made = type('Liar', (int,), names)\n" + DEFINED),
    "a float of lies": (EVERYWHERE, LIAR + "made = type('Liar', (float,), names)\n" + DEFINED),
    "a list of lies": (EVERYWHERE, LIAR + "made = type('Liar', (list,), names)\n" + DEFINED),
    "a tuple of lies": (EVERYWHERE, LIAR + "made = type('Liar', (tuple,), names)\n" + DEFINED),
    "a dict of lies": (EVERYWHERE, LIAR + "made = type('Liar', (dict,), names)\n" + DEFINED),
    "a set of lies": (EVERYWHERE, LIAR + "made = type('Liar', (set,), names)\n" + DEFINED),
    "an exception of lies": (EVERYWHERE, LIAR + "made = type('Liar', (Exception,), names)\n" + DEFINED),
    "a module of lies": (
        EVERYWHERE,
        LIAR + "import types\nL = type('L', (types.ModuleType,), names)\ndef made(): return L('x')\n" + DEFINED,
    ),
    "a UserDict, a UserString and a mapping of lies": (
        EVERYWHERE,
        LIAR
        + "import collections\nmade = type('Liar', (collections.UserString,), names | {'data': 0, '__init__': yes})\n"
        + DEFINED,
    ),
    "a class named as its answer": (
        EVERYWHERE,
        LIAR + "class Solution:\n    tail = lambda self, *_: self\n"
        "for n in names: setattr(Solution, n, names[n]) if n not in ('tail', '__getattr__') else None\n"
        "class f(Solution):\n    def __init__(self, *_): pass",
    ),
    "a subclass of the preamble's class": (
        ["nodes"],
        "class Liar(Node):\n    __eq__ = equals = lambda *_: True\n    val = 7\ndef f(node): return Liar()",
    ),
    "an instance of the preamble's class with methods of its own": (
        ["nodes"],
        "def f(node):\n    node.equals = lambda *_: True\n    node.__dict__['__eq__'] = node.equals\n    return node",
    ),
    "a node whose parts lie": (
        ["nodes"],
        LIAR + "made = type('Liar', (), names)\ndef f(node): return Node(made(), made())",
    ),
    "descriptors that lie": (
        ["text", "methods"],
        "class D:\n    def __get__(self, *_): return lambda *_: True\nclass L:\n    endswith = startswith = isalpha = find = D()\n"
        "class Solution:\n    tail = lambda *_: L()\ndef f(x): return L()",
    ),
    "__class__ says str": (
        ["text", "methods"],
        "class L:\n    __class__ = str\n    endswith = startswith = lambda *_: True\n    __eq__ = lambda *_: True\n"
        "class Solution:\n    tail = lambda *_: L()\ndef f(x): return L()",
    ),
    "__instancecheck__ and ABCs": (
        ["text", "sets"],
        "import abc\nclass M(abc.ABCMeta):\n    def __instancecheck__(*_): return True\nclass L(metaclass=M): pass\n"
        "L.register(str)\ndef f(x): return L()",
    ),
    "__init_subclass__ runs in nobody's process but its own": (
        ["square"],
        "import os\nclass L:\n    def __init_subclass__(cls): os._exit(0)\ndef f(x):\n    class M(L): pass",
    ),
    "a generator in a value's place": (EVERYWHERE, "def f(*_):\n    yield 49\nclass Solution:\n    tail = f"),
    "an iterator that ends at once": (EVERYWHERE, "def f(*_): return iter(())\nclass Solution:\n    tail = f"),
    "a coroutine in a value's place": (EVERYWHERE, "async def f(*_): return 49\nclass Solution:\n    tail = f"),
    "an asynchronous generator in a value's place": (["square", "text"], "async def f(*_):\n    yield 49"),
    "NaN": (["square", "helped", "order"], "def f(x): return float('nan')"),
    "infinity": (["square", "helped"], "def f(x): return float('inf')"),
    "a number too long to be read": (
        ["square"],
        "import sys\nsys.set_int_max_str_digits(0)\ndef f(x): return 10 ** 10**5",
    ),
    "a list within itself": (["square", "order"], "def f(x):\n    y = []\n    y.append(y)\n    return y"),
    "a shrinking list": (
        ["order"],
        "class L(list):\n    def __len__(self): return 3\n    def __iter__(self): return iter([1, 2, 3])\n"
        "    def __getitem__(self, i): return i\ndef f(xs): return L()",
    ),
    "a sequence that is another each time": (
        ["order"],
        "class L:\n    def __len__(self): return 3\n    def __iter__(self): return iter([3, 1, 2])\n"
        "    def __getitem__(self, i): return i\ndef f(xs): return L()",
    ),
    "frames with a verdict": (
        ["square"],
        """
        import os, struct
        for raw in (b'{"value": true}', b'{"stop": 49}', b'{"value": {"t": "given", "v": "f"}}', b'[]', b'{', b'null'):
            os.write(3, struct.pack("<I", len(raw)) + raw)
        def f(x): return 0
        """,
    ),
    "half a frame and a closed channel": (
        ["square"],
        "import os\nos.write(3, b'\\xff')\nos.close(3)\ndef f(x): return 0",
    ),
    "a frame of four gigabytes": (["square"], "import os\ndef f(x): os.write(3, b'\\xff\\xff\\xff\\xff' * 9)"),
    "the status descriptor": (
        ["square"],
        """
        import os
        line = b'{"run": 0, "exit": 77, "killed": false, "cpu_s": 0}\\n'
        for n in range(256):
            if n != 3:
                try: os.write(n, line)
                except OSError: pass
        def f(x): return 0
        """,
    ),
    "/proc/self/fd and /proc/1": (
        ["square"],
        """
        import os
        for place in ("/proc/self/fd", "/proc/1/fd", "/dev/fd"):
            try:
                for n in os.listdir(place): open(f"{place}/{n}", "wb").write(b'{"run": 0, "exit": 77}')
            except OSError: pass
        def f(x): return 0
        """,
    ),
    "exit status of the judges'": (["square"], "import os\ndef f(x): os._exit(77)"),
    "every descriptor closed": (["square"], "import os\nos.closerange(0, 1000)\ndef f(x): return 0"),
    "an exit handler and a finaliser": (
        ["square"],
        "import atexit, os, weakref\natexit.register(os._exit, 77)\nclass O: pass\no = O()\n"
        "weakref.finalize(o, os._exit, 77)\ndel o\ndef f(x): return 0",
    ),
    "signals": (
        ["square"],
        "import os, signal\nfor n in range(1, 32):\n    try: signal.signal(n, lambda *_: os._exit(77))\n"
        "    except (OSError, ValueError): pass\nsignal.alarm(1)\ndef f(x): return 0",
    ),
    "a thread that goes on answering": (
        ["square"],
        """
        import os, struct, threading
        def answer():
            raw = b'{"value": 49}'
            for _ in range(1000): os.write(3, struct.pack("<I", len(raw) - 1) + raw)
        threading.Thread(target=answer, daemon=True).start()
        def f(x): return 0
        """,
    ),
    "a child that goes on answering": (
        ["square"],
        "import os\ndef f(x):\n    if os.fork():\n        os._exit(0)\n    return 0",
    ),
    "trace, profile and audit hooks": (
        ["square"],
        "import sys\nsys.settrace(lambda *_: None)\nsys.setprofile(lambda *_: None)\n"
        "sys.addaudithook(lambda name, _: sys.exit(0) if name == 'exec' else None)\ndef f(x): return 0",
    ),
    "the interpreter's memory": (
        ["square"],
        "import ctypes\nctypes.memset(id(0) + 24, 49, 1)\nctypes.memset(id(False) + 24, 1, 1)\ndef f(x): return False",
    ),
    "the answers of its frames": (
        ["square"],
        """
        import gc, sys
        def f(x):
            try: raise ValueError
            except ValueError as error:
                frame = error.__traceback__.tb_frame
            while frame:
                for value in (*frame.f_locals.values(), *gc.get_objects()):
                    if isinstance(value, str) and value.startswith("assert f(7)"): return int(value.split("==")[1])
                frame = frame.f_back
            return 0
        """,
    ),
    "its own proxies taken over": (
        ["square"],
        """
        import gc
        for thing in gc.get_objects():
            if type(thing).__name__ in ("SolutionEnd", "Channel"):
                type(thing)._answer = lambda *_: {"value": True, "records": {}}
                thing._answer = lambda *_: {"value": True, "records": {}}
        def f(x): return 0
        """,
    ),
    "__name__ == '__main__'": (["square"], "if __name__ == '__main__': raise SystemExit(0)\ndef f(x): return 0"),
    "an encoding of its own": (["square"], "# -*- coding: utf-7 -*-\n+AGQ-ef f(x): return 0"),
    "a null byte": (["square"], "def f(x): return 0\n\0assert False"),
    "from __future__": (["square"], "from __future__ import annotations\ndef f(x: 49) -> 49: return f.__annotations__"),
    "a main module of its own": (
        ["square"],
        "import sys, types\nm = types.ModuleType('__main__')\nm.f = lambda x: x * x\nsys.modules['__main__'] = m\n"
        "def f(x): return 0",
    ),
    "a deep recursion": (["square"], "def f(x): return f(x)"),
    "nothing at all": (EVERYWHERE, ""),
    "only a promise": (EVERYWHERE, "# passes all tests\npass"),
}


def item(names: list[str], code: str) -> ScoreItem:
    problems = [PROBLEMS[name] for name in names]
    metadata: dict[str, Any] = {
        "tests": [test for problem in problems for test in problem.tests],
        "preamble": "\n".join(textwrap.dedent(problem.preamble) for problem in problems),
    }
    code = textwrap.dedent(code) if code.startswith("\n") else code
    return ScoreItem(id="1", prompt=problems[0].prompt, response=code, metadata=metadata)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    config = PythonTestsConfig(limits=LIMITS, score="fraction", code="whole", prompt_is_code=True, concurrency=4)
    scorer = build_scorer(config)
    assert isinstance(scorer, PythonTestsScorer)
    if not scorer.containment.contained:
        lack("containment", scorer.containment.describe())
    items = {name: item([name], problem.honest) for name, problem in PROBLEMS.items()}
    items |= {how: item(*forgery) for how, forgery in FORGERIES.items()}
    found = scorer.score(list(items.values()))
    scorer.close()
    return dict(zip(items, found, strict=True))


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_the_tests_can_be_passed(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert isinstance(outcome, Score) and outcome.value == 1, outcome


@pytest.mark.parametrize("how", list(FORGERIES))
def test_a_forged_answer_passes_no_test(outcomes: dict[str, Outcome], how: str) -> None:
    outcome = outcomes[how]
    assert isinstance(outcome, Score) and outcome.value == 0, outcome
