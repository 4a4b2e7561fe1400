# ruff: noqa: E501 (answers are as long as they are)
"""Honest answers of every make pass their tests, though the tests see plain values, copies and proxies of what the
answer made. All are scored in one batch, in the real sandbox."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import pytest

from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.sandbox.limits import Limits
from rollcall.reward_service.scorer import Outcome, Score
from rollcall.reward_service.scorers.building import build_scorer
from rollcall.reward_service.scorers.python_tests import PythonTestsScorer, split_prompt
from rollcall.reward_service.scorers.python_tests_config import PythonTestsConfig
from tests.needs import lack

LIMITS = Limits(wall_s=20, cpu_s=10, memory_bytes=256 << 20)


class Answer(NamedTuple):
    code: str
    test: str
    preamble: str = ""
    entry_point: str | None = None


LINKED = """
class Node:
    def __init__(self, val=0, next=None): self.val, self.next = val, next
    def __eq__(self, other): return other is not None and (self.val, self.next) == (other.val, other.next)
def linked(values):
    first = None
    for value in reversed(values): first = Node(value, first)
    return first
def values(node):
    found = []
    while node: found.append(node.val); node = node.next
    return found
"""
HONEST = {
    "a linked list turned round, with the preamble's class": Answer(
        """
        def turned(node):
            last = None
            while node: node.next, last, node = last, node, node.next
            return last
        """,
        """
        assert values(turned(linked([1, 2, 3]))) == [3, 2, 1] and turned(None) is None
        assert turned(linked([1, 2])) == linked([2, 1])
        assert values(turned(linked(range(1500)))) == list(range(1499, -1, -1))
        first = linked([1, 2])
        second = first.next
        assert turned(first) is second and second.next is first and first.next is None
        """,
        LINKED,
    ),
    "an answer that defines the preamble's class again": Answer(
        LINKED + "def last(node): return Node(node.val) if not node.next else last(node.next)",
        "assert last(linked([1, 2])).val == 2 and values(last(linked([5]))) == [5]",
        LINKED,
    ),
    "a ring, and a tree that knows its parents": Answer(
        """
        def ring(n):
            first = node = Node(0)
            for i in range(1, n): node.next = Node(i); node = node.next
            node.next = first
            return first
        def has_ring(node):
            seen = []
            while node:
                if any(node is each for each in seen): return True
                seen.append(node)
                node = node.next
            return False
        """,
        "r = ring(3)\nassert r.next.next.next is r and has_ring(r) and not has_ring(linked([1, 2]))",
        LINKED.replace("__eq__", "same"),
    ),
    "an object changed in place by a function": Answer(
        "def pay(account, n):\n    if n > account.balance: raise ValueError('too little')\n    account.balance -= n",
        "a = Account(10)\npay(a, 3)\nassert a.balance == 7 and a.left() == '7'\n"
        "try:\n    pay(a, 8)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'too little'",
        "class Account:\n    __slots__ = ('balance',)\n    def __init__(self, n): self.balance = n\n"
        "    def left(self): return str(self.balance)",
    ),
    "the preamble's dataclasses, namedtuples and enums": Answer(
        "def middle(a, b): return Point((a.x + b.x) / 2, (a.y + b.y) / 2)\n"
        "def swap(p): return Pair(p.b, p.a)\ndef other(c): return Colour.BLUE if c is Colour.RED else Colour.RED",
        "assert middle(Point(0, 0), Point(2, 4)) == Point(1, 2) and swap(Pair(1, 2)) == Pair(2, 1) == (2, 1)\n"
        "assert swap(Pair(1, 2)).a == 2 and other(Colour.RED) is Colour.BLUE and other(other(Colour.RED)) == Colour.RED",
        "import collections, dataclasses, enum\n@dataclasses.dataclass(frozen=True)\nclass Point:\n    x: float\n"
        "    y: float\nPair = collections.namedtuple('Pair', 'a b')\nclass Colour(enum.Enum):\n    RED = 1\n    BLUE = 2",
    ),
    "a subclass of the preamble's abstract class": Answer(
        "class Circle(Shape):\n    def __init__(self, r): self.r = r\n    def area(self): return 3 * self.r ** 2\n"
        "def make(kind, n): return Circle(n)",
        "assert isinstance(Circle(2), Shape) and Circle(2).area() == 12 and make('circle', 1).area() == 3\n"
        "assert total([Circle(1), Circle(2)]) == 15",
        "class Shape:\n    def area(self): raise NotImplementedError\ndef total(shapes): return sum(s.area() for s in shapes)",
    ),
    "the preamble's exception raised": Answer(
        "class TooBig(TooMuch): pass\ndef f(x):\n    if x > 9: raise TooBig('big', x)\n    raise TooMuch('much', x)",
        "for n, kind in ((3, TooMuch), (10, TooBig)):\n    try:\n        f(n)\n    except kind as e:\n"
        "        assert e.args[1] == n and e.worth() == n and isinstance(e, TooMuch)\n    else:\n        assert False",
        "class TooMuch(Exception):\n    def worth(self): return self.args[1]",
    ),
    "a stub of the preamble's filled in": Answer(
        "def f(x): return x + g(1)",
        "assert f(1) == 3 and twice(2) == 8",
        "def f(x):\n    '''To do.'''\ndef g(x): return x + 1 - 0 if x else 0\ndef twice(x): return f(x) * 2",
    ),
    "a name of the tests' in the answer as well": Answer(
        "import math\ndef close(a, b): return a is b\ndef f(x): return x / 3",
        "import math\ndef close(a, b): return abs(a - b) < 1e-9\nassert close(f(1), 1 / 3) and math.pi > 3",
    ),
    "StopIteration where it is expected": Answer(
        """
        class Two:
            def __init__(self): self.n = 0
            def __iter__(self): return self
            def __next__(self):
                self.n += 1
                if self.n > 2: raise StopIteration
                return self.n
            def pull(self): return self.__next__()
        def numbers(n):
            yield from range(n)
            return 'end'
        """,
        """
        import unittest
        assert list(Two()) == [1, 2] and sum(Two()) == 3 and next(iter(Two())) == 1
        t = Two()
        assert t.pull() == 1 and next(t) == 2 and next(t, None) is None
        try:
            t.pull()
            assert False
        except StopIteration:
            pass
        with unittest.TestCase().assertRaises(StopIteration):
            next(numbers(0))
        unittest.TestCase().assertRaises((StopIteration, KeyError), t.pull)
        assert all(map(lambda x: x < 3, numbers(3))) and dict(zip("ab", numbers(9))) == {"a": 0, "b": 1}
        """,
    ),
    "sys.exit where it is expected": Answer(
        "import sys\ndef main(argv):\n    if not argv: sys.exit(2)\n    return 0",
        "try:\n    main([])\nexcept SystemExit as e:\n    assert e.code == 2\nelse:\n    assert False\nassert main([1]) == 0",
    ),
    "exceptions of builtin and of library kinds": Answer(
        "import json, decimal\ndef read(s): return json.loads(s)\ndef first(xs): return xs[0]\n"
        "def divide(a, b):\n    assert b > -9, 'low'\n    return decimal.Decimal(a) / decimal.Decimal(b)\n"
        "def opened(p): return open(p)",
        """
        import json, decimal, unittest
        case = unittest.TestCase()
        with case.assertRaises(json.JSONDecodeError) as caught:
            read("{")
        assert caught.exception.pos == 1
        with case.assertRaisesRegex(IndexError, "out of range"):
            first([])
        case.assertRaises(TypeError, first)
        case.assertRaises(decimal.DivisionByZero, divide, 1, 0)
        case.assertRaises(AssertionError, divide, 1, -9)
        with case.assertRaises(FileNotFoundError) as caught:
            opened("/nowhere")
        assert caught.exception.errno == 2
        try:
            read(None)
        except Exception as e:
            assert type(e) is TypeError
        """,
    ),
    "exceptions of the answer's own": Answer(
        """
        class BankError(Exception): pass
        class Short(BankError):
            def __init__(self, need):
                super().__init__(f"need {need}")
                self.need = need
        class Bank:
            class Closed(BankError): pass
            def draw(self, n): raise Short(n)
            def close(self): raise self.Closed("closed")
        """,
        "b = Bank()\ntry:\n    b.draw(5)\nexcept Short as e:\n    assert e.need == 5 and str(e) == 'need 5'\n"
        "try:\n    b.draw(5)\nexcept BankError as e:\n    assert isinstance(e, Short)\n"
        "try:\n    b.close()\nexcept Bank.Closed:\n    pass\nassert issubclass(Short, BankError)",
    ),
    "a stack, by its class": Answer(
        """
        class Stack:
            def __init__(self, items=()): self.items = list(items)
            def append(self, x): self.items.append(x)
            def pop(self): return self.items.pop()
            def count(self, x): return self.items.count(x)
            def copy(self): return Stack(self.items)
            def __contains__(self, x): return x in self.items
            def __len__(self): return len(self.items)
            def __hash__(self): return hash(tuple(self.items))
            def __eq__(self, other): return self.items == other.items
        """,
        "s = Stack()\ns.append(1)\ns.append(1)\nassert s.count(1) == 2 and s.pop() == 1 and len(s) == 1 and 1 in s\n"
        "assert Stack([1, 2]).pop() == 2 and s.copy() == Stack([1]) and len({Stack([1]), Stack([1])}) == 1",
    ),
    "an object that a function made": Answer(
        "class _Cache:\n    def __init__(self, n): self.n, self.d = n, {}\n    def get(self, k): return self.d.get(k, -1)\n"
        "    def put(self, k, v): self.d[k] = v\ndef make_cache(n): return _Cache(n)",
        "c = make_cache(2)\nassert c.get(1) == -1\nc.put(1, 5)\nassert c.get(1) == 5 and c.n == 2",
    ),
    "vectors that reckon among themselves and with numbers": Answer(
        """
        import functools
        @functools.total_ordering
        class Vector:
            def __init__(self, *x): self.x = x
            def __add__(self, o): return Vector(*(a + b for a, b in zip(self.x, o.x)))
            def __mul__(self, n): return Vector(*(a * n for a in self.x))
            __rmul__ = __mul__
            def __eq__(self, o): return self.x == o.x
            def __lt__(self, o): return self.x < o.x
            def __abs__(self): return sum(a * a for a in self.x) ** .5
            def __getitem__(self, n): return self.x[n]
            def __len__(self): return len(self.x)
            def __call__(self, n): return self.x[n] + 1
        """,
        "v = Vector(3, 4)\nassert v + v == 2 * v == v * 2 and abs(v) == 5 and v[0] == 3 and len(v) == 2 and v(0) == 4\n"
        "assert v < v + v and sorted([v + v, v])[0] == v and max(v, v * 3).x == (9, 12)",
    ),
    "dataclasses, properties and class methods": Answer(
        """
        from dataclasses import dataclass, field
        from typing import Optional
        @dataclass(order=True)
        class Item:
            name: str
            price: float = 1.0
            tags: list[str] = field(default_factory=list)
            made = 0
            @classmethod
            def parse(cls, s: str) -> "Item": cls.made += 1; return cls(*s.split(":")[:1])
            @staticmethod
            def tax(x): return x * 2
            @property
            def gross(self): return self.price * 1.5
            @gross.setter
            def gross(self, x): self.price = x / 1.5
        """,
        "i = Item.parse('tea:1')\nassert i.name == 'tea' and i == Item('tea') and Item.made == 1 and Item.tax(2) == 4\n"
        "i.gross = 3\nassert i.price == 2 and i.tags == [] and Item('a') < Item('b')\n"
        "assert repr(Item('a')) == \"Item(name='a', price=1.0, tags=[])\"",
    ),
    "generators, endless and sent to": Answer(
        "def fib():\n    a, b = 0, 1\n    while True:\n        yield a\n        a, b = b, a + b\n"
        "def adder():\n    total = 0\n    while True: total += (yield total)\ndef lazy(xs): return map(lambda x: x * 2, xs)\n"
        "def pairs(d): return d.items()",
        "from itertools import islice, takewhile\nimport types, inspect, collections.abc\n"
        "assert list(islice(fib(), 7)) == [0, 1, 1, 2, 3, 5, 8] and list(takewhile(lambda x: x < 9, fib()))[-1] == 8\n"
        "g = adder()\nnext(g)\nassert g.send(2) == 2 and g.send(3) == 5 and isinstance(g, types.GeneratorType)\n"
        "assert inspect.isgenerator(fib()) and isinstance(lazy([1]), collections.abc.Iterator)\n"
        "assert list(lazy([1, 2])) == [2, 4] and sorted(pairs({1: 2})) == [(1, 2)] and ('a', 1) in pairs({'a': 1})",
    ),
    "asynchronous functions": Answer(
        "import asyncio\nasync def double(x):\n    await asyncio.sleep(0)\n    return 2 * x\n"
        "async def count(n):\n    for i in range(n): yield i\nasync def all_of(xs): return await asyncio.gather(*map(double, xs))",
        "import asyncio\nassert asyncio.run(double(2)) == 4 and asyncio.run(all_of([1, 2])) == [2, 4]\n"
        "async def main(): return [i async for i in count(3)], await asyncio.gather(double(1), double(2))\n"
        "assert asyncio.run(main()) == ([0, 1, 2], [2, 4])",
    ),
    "the library's containers": Answer(
        """
        from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
        from types import MappingProxyType
        def last(xs): return deque(xs, maxlen=2)
        def groups(xs):
            d = defaultdict(list)
            for x in xs: d[x % 2].append(x)
            return d
        def letters(s): return Counter(s)
        def keys(d): return d.keys()
        def values(d): return d.values()
        def ordered(d): return OrderedDict(sorted(d.items()))
        def chained(a, b): return ChainMap(a, b)
        def frozen(d): return MappingProxyType(d)
        def user(xs): return UserList(xs)
        """,
        """
        from collections import Counter, OrderedDict, deque
        assert last([1, 2, 3]) == deque([2, 3]) and last([1]).maxlen == 2
        assert groups([1, 2, 3]) == {1: [1, 3], 0: [2]} and groups([])[5] == []
        assert letters("aab").most_common(1) == [("a", 2)] and letters("a") + Counter("b") == Counter("ab")
        assert keys({1: 2}) == {1} and list(values({1: 2})) == [2] and len(keys({})) == 0
        assert ordered({2: 1, 1: 2}) == OrderedDict([(1, 2), (2, 1)])
        assert chained({1: 2}, {3: 4})[3] == 4 and frozen({1: 2}) == {1: 2} and frozen({1: 2}).get(1) == 2
        assert user([1, 2]) == [1, 2] and len(user([1])) == 1
        """,
    ),
    "numbers, times and paths": Answer(
        "from decimal import Decimal\nfrom fractions import Fraction\nfrom datetime import *\nfrom pathlib import Path\n"
        "import uuid\ndef half(x): return Fraction(x, 2)\ndef money(s): return Decimal(s).quantize(Decimal('.01'))\n"
        "def tomorrow(d): return d + timedelta(days=1)\ndef noon(): return datetime(2020, 1, 2, 12, tzinfo=timezone.utc)\n"
        "def up(p): return Path(p).parent\ndef zero(): return uuid.UUID(int=0)\ndef root(x): return x ** .5",
        "import cmath, datetime, decimal, fractions, math, pathlib, uuid\n"
        "assert half(3) == fractions.Fraction(3, 2) == 1.5 and money('1.005') == decimal.Decimal('1.00')\n"
        "assert tomorrow(datetime.date(2020, 2, 28)) == datetime.date(2020, 2, 29) and noon().hour == 12\n"
        "assert noon().utcoffset() == datetime.timedelta(0) and up('a/b') == pathlib.Path('a') and zero() == uuid.UUID(int=0)\n"
        "assert math.isclose(root(2), 1.41421356, rel_tol=1e-6) and cmath.isclose(root(-1), 1j)",
    ),
    "namedtuples, enums and subclasses of plain types": Answer(
        "import enum\nfrom typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int = 0\n"
        "class C(enum.Enum):\n    A = 1\n    B = 2\nclass S(str):\n    def shout(self): return self.upper() + '!'\n"
        "class D(dict):\n    def __missing__(self, k): return 0\ndef p(): return P(1)\ndef b(): return C.B\n"
        "def s(x): return S(x)",
        "assert p() == (1, 0) == P(1) and p().x == 1 and isinstance(p(), tuple) and p()._asdict() == {'x': 1, 'y': 0}\n"
        "assert b() == C.B and b() is C.B and b() is not C.A and C.B.value == 2 and C.B.name == 'B'\n"
        "assert s('a') == 'a' and s('a').shout() == 'A!' and s('ab').endswith('b') and len(s('ab')) == 2\n"
        "d = D()\nd['a'] = 1\nassert d['a'] == 1 and d['z'] == 0 and d == {'a': 1} and list(d) == ['a'] and 'a' in d",
    ),
    "closures, decorators and partial functions": Answer(
        "import functools\ndef counter():\n    n = 0\n    def step():\n        nonlocal n\n        n += 1\n        return n\n"
        "    return step\ndef twice(f):\n    @functools.wraps(f)\n    def g(*a, **k): return f(f(*a, **k))\n    return g\n"
        "def compose(*fs): return functools.reduce(lambda f, g: lambda x: f(g(x)), fs)\n"
        "def power(n): return functools.partial(pow, exp=n)",
        "c = counter()\nassert (c(), c(), counter()()) == (1, 2, 1) and twice(lambda x: x + 1)(1) == 3\n"
        "assert compose(str, abs)(-3) == '3' and power(2)(3) == 9 and callable(counter())\n"
        "def inc(x): return x + 1\nassert twice(inc).__name__ == 'inc'",
    ),
    "recursion, memory and big numbers": Answer(
        "import functools, sys\nsys.setrecursionlimit(5000)\n@functools.lru_cache(None)\n"
        "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\ndef depth(n): return n and 1 + depth(n - 1)\n"
        "def fact(n): return 1 if n < 2 else n * fact(n - 1)",
        "import math\nassert fib(300) % 10 == 0 and depth(2000) == 2000 and fact(500) == math.factorial(500)\n"
        "assert fib.cache_info().hits > 0",
    ),
    "in place: sorting, turning, nested lists": Answer(
        "def turn(m):\n    n = len(m)\n    m[:] = [[m[n - 1 - j][i] for j in range(n)] for i in range(n)]\n"
        "def sort(xs, key=None): xs.sort(key=key)\ndef add(d, k): d.setdefault(k, []).append(1)\n"
        "def drop(s, x): s.discard(x)\ndef nums(xs):\n    k = 0\n    for x in xs:\n        if x: xs[k] = x; k += 1\n    return k",
        "m = [[1, 2], [3, 4]]\nassert turn(m) is None and m == [[3, 1], [4, 2]]\n"
        "xs = [3, -1, 2]\nsort(xs, key=abs)\nassert xs == [-1, 2, 3]\nd = {}\nadd(d, 'a')\nadd(d, 'a')\n"
        "assert d == {'a': [1, 1]}\ns = {1, 2}\ndrop(s, 1)\nassert s == {2}\nys = [0, 1, 0, 2]\nk = nums(ys)\nassert ys[:k] == [1, 2]",
    ),
    "context managers and iterables of the answer's own": Answer(
        "from contextlib import contextmanager\n@contextmanager\ndef opened(log):\n    yield log\n"
        "class Countdown:\n    def __init__(self, n): self.n = n\n    def __iter__(self):\n        n = self.n\n"
        "        while n: yield n; n -= 1\n    def __reversed__(self): return iter(range(1, self.n + 1))\n"
        "def evens(n):\n    class E:\n        def __iter__(self): return iter(range(0, n, 2))\n    return E()",
        "with opened([1]) as log:\n    assert log == [1]\nc = Countdown(3)\nassert list(c) == [3, 2, 1] == list(c)\n"
        "assert list(reversed(c)) == [1, 2, 3] and max(c) == 3\ne = evens(5)\nassert list(e) == [0, 2, 4] and 2 in e",
    ),
    "a class of answers (LeetCode)": Answer(
        "from typing import List, Optional\nclass Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]:\n"
        "        seen = {}\n        for i, n in enumerate(nums):\n            if target - n in seen: return [seen[target - n], i]\n"
        "            seen[n] = i\n        return []\n    def word(self, s: str) -> Optional[str]: return s[::-1] or None",
        "s = Solution()\nassert s.twoSum([2, 7, 11], 9) == [0, 1] and Solution().word('ab').startswith('b')\n"
        "assert Solution().word('') is None and isinstance(s, Solution)",
    ),
    "a check of the tests' that gets the answer's function": Answer(
        "def add(a, b=1): return a + b",
        "import unittest\ncheck(add)\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, b=2), 3)\n"
        "result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\n"
        "assert result.wasSuccessful() and result.testsRun == 1\nif __name__ == '__main__':\n    unittest.main()",
        "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2, 3) == 5",
    ),
    "modules that only the answer imports": Answer(
        "import math, collections\ndef area(r): return math.pi * r * r\ndef count(s): return collections.Counter(s)",
        "assert area(2) == math.pi * 4 and count('aa') == collections.Counter('aa')",
    ),
    "names like modules' and builtins'": Answer(
        "def calendar(y): return y + 1\nclass queue:\n    def push(self, x): self.x = x; return x\n"
        "def filter(xs): return [x for x in xs if x > 1]",
        "assert calendar(1) == 2 and queue().push(3) == 3 and filter([1, 2]) == [2]",
        entry_point="filter",
    ),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    scorer = build_scorer(PythonTestsConfig(limits=LIMITS, code="whole", concurrency=4))
    assert isinstance(scorer, PythonTestsScorer)
    if not scorer.containment.contained:
        lack("containment", scorer.containment.describe())
    items = []
    for what, answer in HONEST.items():
        metadata: dict[str, Any] = {"tests": textwrap.dedent(answer.test), "preamble": textwrap.dedent(answer.preamble)}
        metadata |= {"entry_point": answer.entry_point} if answer.entry_point else {}
        items.append(ScoreItem(id=what, prompt="p", response=textwrap.dedent(answer.code), metadata=metadata))
    found = scorer.score(items)
    scorer.close()
    return dict(zip(HONEST, found, strict=True))


@pytest.mark.parametrize("what", list(HONEST))
def test_an_honest_answer_passes(outcomes: dict[str, Outcome], what: str) -> None:
    outcome = outcomes[what]
    assert isinstance(outcome, Score) and outcome.value == 1, outcome


def test_what_stands_before_a_prompts_last_definition_is_the_tests_too() -> None:
    helper = "import math\n\ndef close(a, b):\n    return math.isclose(a, b)\n\n"
    last = "@cache\nasync def f(x):\n    '''Its\n    square.'''\n"
    assert split_prompt(helper + last) == (helper, last)
    assert split_prompt("x = '''\ndef g(): pass\n'''\n") == ("", "x = '''\ndef g(): pass\n'''\n")
    assert split_prompt("# the square of x\n") == ("", "# the square of x\n")
