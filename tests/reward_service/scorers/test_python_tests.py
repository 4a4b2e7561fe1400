"""Scoring code by its tests: what passes, what fails, and every way we know to pass without solving. All in the real
sandbox."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.sandbox.limits import Limits
from rollcall.reward_service.sandbox.run import probe
from rollcall.reward_service.scorer import Failure, Outcome, Score
from rollcall.reward_service.scorers.building import build_scorer
from rollcall.reward_service.scorers.python_tests import PythonTestsScorer, code_in
from rollcall.reward_service.scorers.python_tests_config import PythonTestsConfig
from tests.needs import lack

LIMITS = Limits(wall_s=20, cpu_s=10, memory_bytes=256 << 20, output_bytes=10_000)
CONFIG = PythonTestsConfig(limits=LIMITS, score="fraction")
HASTE = LIMITS.model_copy(update={"wall_s": 1.5, "cpu_s": 1})  # for what never ends by itself


@pytest.fixture(scope="module")
def scorer() -> Iterator[PythonTestsScorer]:
    yield from built(CONFIG)


@pytest.fixture(scope="module")
def hasty() -> Iterator[PythonTestsScorer]:
    yield from built(CONFIG.model_copy(update={"limits": HASTE}))


def built(config: PythonTestsConfig) -> Iterator[PythonTestsScorer]:
    scorer = build_scorer(config)
    assert isinstance(scorer, PythonTestsScorer)
    if not scorer.containment.contained:
        lack("containment", scorer.containment.describe())
    yield scorer
    scorer.close()


def judged(scorer: PythonTestsScorer, code: str, tests: Any, **metadata: Any) -> Outcome:
    item = ScoreItem(id="1", prompt="p", response=textwrap.dedent(code), metadata={"tests": tests, **metadata})
    return scorer.score([item])[0]


def share(scorer: PythonTestsScorer, code: str, tests: Any, **metadata: Any) -> float:
    outcome = judged(scorer, code, tests, **metadata)
    assert isinstance(outcome, Score), outcome
    return outcome.value


def test_the_score_is_the_share_of_tests_that_pass(scorer: PythonTestsScorer) -> None:
    tests = ["assert double(2) == 4", "assert double(3) == 7", "assert double('ab') == 'abab'", "assert half(2) == 1"]
    outcome = judged(scorer, "def double(x): return 2 * x", tests)
    assert outcome == Score(0.5, {"passed": 2.0, "tests": 4.0, "timed_out": 0.0})


def test_all_or_nothing_is_one_only_where_all_pass() -> None:
    scorer = build_scorer(CONFIG.model_copy(update={"score": "all"}))
    assert isinstance(scorer, PythonTestsScorer)
    assert share(scorer, "def f(): return 1", ["assert f() == 1", "assert f() == 2"]) == 0
    assert share(scorer, "def f(): return 1", ["assert f() == 1", "assert f() != 2"]) == 1
    scorer.close()


def test_the_code_is_the_last_fenced_block_of_python() -> None:
    response = "First:\n```python\nx = 1\n```\nor\n```\nx = 2\n```\nrun it with\n```bash\npython x.py\n```\n"
    assert code_in(response) == "x = 2\n"
    assert code_in("x = 3") == "x = 3"


def test_a_completion_goes_on_where_its_prompt_ends() -> None:
    config = CONFIG.model_copy(update={"prompt_is_code": True, "code": "whole"})
    scorer = build_scorer(config)
    item = ScoreItem(
        id="1", prompt="def f(x):\n", response="    return x + 1\n", metadata={"tests": "assert f(1) == 2"}
    )
    assert scorer.score([item]) == [Score(1.0, {"passed": 1.0, "tests": 1.0, "timed_out": 0.0})]
    scorer.close()


HONEST = {
    "values of every plain kind come back as they are": (
        """
        import collections, datetime, decimal, fractions
        def same(x): return x
        def big(): return 7 ** 9999
        def many(): return (1, 2.5, 1j, b"x", "\\ud800", {1: {2}}, frozenset([None]), range(3), [[]])
        def counted(s): return collections.Counter(s)
        """,
        """
        import collections, math
        assert same(float("inf")) == math.inf and math.isnan(same(float("nan")))
        assert big() == 7 ** 9999
        assert many() == (1, 2.5, 1j, b"x", "\\ud800", {1: {2}}, frozenset([None]), range(3), [[]])
        assert type(many()[5]) is dict and isinstance(same([1]), list) and same(True) is True and same(None) is None
        assert counted("aab") == collections.Counter("aab") == {"a": 2, "b": 1}
        assert same(bool) is bool
        """,
    ),
    "a function may change its argument in place": (
        "def order(xs): xs.sort()\ndef put(d): d['k'] = 1",
        "xs = [3, 1, 2]\nassert order(xs) is None\nassert xs == [1, 2, 3]\nd = {}\nput(d)\nassert d == {'k': 1}",
    ),
    "objects are used through their methods": (
        """
        class Stack:
            size = 0
            def __init__(self, items=()): self.items = list(items)
            def push(self, x): self.items.append(x); self.size += 1; return self
            def pop(self): return self.items.pop()
            def __len__(self): return len(self.items)
            def __iter__(self): return iter(self.items)
            def __getitem__(self, n): return self.items[n]
            def __add__(self, other): return Stack(self.items + other.items)
            def __eq__(self, other): return self.items == other.items
            def __repr__(self): return f"Stack({self.items})"
            def __enter__(self): return self
            def __exit__(self, *e): self.items.clear()
        def make(): return Stack()
        """,
        """
        s = Stack()
        assert s.push(1).push(2) is s and len(s) == 2 and list(s) == [1, 2] and s[0] == 1 and 2 in s and 3 not in s
        assert s.size == 2 and s and not make()
        assert isinstance(s, Stack) and isinstance(make(), Stack) and not isinstance(3, Stack)
        assert s + Stack([3]) == Stack([1, 2, 3]) and s != Stack([]) and repr(s) == "Stack([1, 2])"
        s.size = 9
        assert s.size == 9 and s.pop() == 2
        with s as t:
            assert t is s
        assert len(s) == 0
        """,
    ),
    "generators, namedtuples and enums behave": (
        """
        import collections, enum
        P = collections.namedtuple("P", "x y")
        class C(enum.IntEnum):
            RED = 1
        def squares(n):
            for i in range(n): yield i * i
        def point(): return P(1, 2)
        """,
        """
        assert list(squares(4)) == [0, 1, 4, 9] and sum(squares(3)) == 5
        g = squares(2)
        assert next(g) == 0
        p = point()
        assert p == (1, 2) and p.x == 1 and p[1] == 2 and p == P(1, 2) and hash(p) == hash((1, 2)) and (1, 2) == p
        assert C.RED == 1 and C.RED < 2
        """,
    ),
    "objects reckon among themselves, and their plain values with others": (
        """
        class Vector:
            def __init__(self, *x): self.x = x
            def __add__(self, other): return Vector(*(a + b for a, b in zip(self.x, other.x)))
            def __eq__(self, other): return self.x == other.x
            def __lt__(self, other): return self.x < other.x
            def __neg__(self): return Vector(*(-a for a in self.x))
        class Metres(float): pass
        def walk(): return Metres(1.5)
        """,
        """
        assert Vector(1, 2) + Vector(3, 4) == Vector(4, 6) and -Vector(1) == Vector(-1) and Vector(1) < Vector(2)
        assert (Vector(1, 2) + Vector(3, 4)).x == (4, 6)
        assert walk() * 2 == 3 and 2 * walk() == 3 and abs(walk() - 1.5) < 1e-9 and 1 < walk() < 2
        """,
    ),
    "exceptions keep their kind, the code's own too": (
        """
        class Mine(ValueError): pass
        def f(x):
            if x < 0: raise Mine("negative")
            return {}[x]
        """,
        """
        try:
            f(-1)
        except Mine as error:
            assert str(error) == "negative" and isinstance(error, ValueError)
        else:
            assert False
        try:
            f(1)
            assert False
        except KeyError:
            pass
        """,
    ),
    "functions of the test's can be handed over": (
        "def apply(f, xs): return [f(x) for x in xs]\ndef fold(f, xs, z):\n    for x in xs: z = f(z, x)\n    return z",
        """
        seen = []
        assert apply(lambda x: seen.append(x) or x + 1, [1, 2]) == [2, 3] and seen == [1, 2]
        assert apply(str, [1]) == ["1"] and apply(len, ["ab"]) == [2]
        assert fold(lambda a, b: a * b, [2, 3], 1) == 6
        """,
    ),
    "a check function gets the code's function": (
        "def candidate_sum(xs): return sum(xs)",
        "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\ncheck(candidate_sum)",
    ),
    "modules that the code imports are there for its tests": (
        "import math\ndef area(r): return math.pi * r * r",
        "assert area(2) == math.pi * 4",
    ),
}


@pytest.mark.parametrize("what", list(HONEST))
def test_honest_code_passes(scorer: PythonTestsScorer, what: str) -> None:
    code, test = HONEST[what]
    outcome = judged(scorer, code, textwrap.dedent(test))
    assert isinstance(outcome, Score) and outcome.value == 1, outcome


def test_a_name_like_a_builtins_is_the_codes_only_as_entry_point(scorer: PythonTestsScorer) -> None:
    code, test = "def sorted(xs): return 'mine'", "assert sorted([2, 1]) == 'mine'"
    assert share(scorer, code, test) == 0
    assert share(scorer, code, test, entry_point="sorted") == 1


def test_a_preamble_runs_before_the_code(scorer: PythonTestsScorer) -> None:
    preamble = "class Node:\n    def __init__(self, v, n=None): self.v, self.n = v, n"
    code = "def length(node):\n    return 0 if node is None else 1 + length(node.n)"
    assert share(scorer, code, "assert length(Node(1, Node(2))) == 2 and Node(3).v == 3", preamble=preamble) == 1


# Each claims to solve f(x) = x * x without doing so.
FORGERIES = {
    "leaves before the tests run": "import sys\nsys.exit(0)",
    "ends its process": "import os\nos._exit(0)",
    "ends its process when called": "import os\ndef f(x): os._exit(0)",
    "prints that it passed": """
        import os
        print('passed', flush=True)
        for n in range(3):
            os.write(n, b'{"run": 0, "exit": 0}')
        def f(x): return 0
    """,
    "is equal to everything": """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            __lt__ = __gt__ = __le__ = __ge__ = __eq__
            def __bool__(self): return True
            def __contains__(self, x): return True
        def f(x): return Any()
    """,
    "is equal to everything but for 0": """
        class Any:
            def __sub__(self, other): return 0
            __rsub__ = __mod__ = __xor__ = __sub__
            def __truediv__(self, other): return 1
            def __abs__(self): return 0
        def f(x): return Any()
    """,
    "is an int that is equal to everything but for 0": """
        class Any(int):
            def __sub__(self, other): return 0
            __rsub__ = __mod__ = __xor__ = __sub__
            def __abs__(self): return 0
        def f(x): return Any()
    """,
    "is an int that is equal to everything": """
        class Any(int):
            def __eq__(self, other): return True
            __ne__ = lambda self, other: False
            __hash__ = int.__hash__
        def f(x): return Any(0)
    """,
    "is equal to everything deep inside": """
        class Any:
            def __eq__(self, other): return True
        def f(x): return [Any()]
        f.__eq__ = lambda *_: True
    """,
    "replaces builtins and AssertionError": """
        import builtins
        builtins.AssertionError = type("Fine", (Exception,), {})
        builtins.all = builtins.any = builtins.isinstance = lambda *_: True
        builtins.len = lambda x: 9
        builtins.print = builtins.exec = builtins.compile = None
        def f(x): return 0
    """,
    "defines what tests call": """
        def all(xs): return True
        def abs(x): return 0
        def set(x): return 1
        def f(x): return 0
    """,
    "looks for the expected value in frames": """
        import gc, sys
        def looks_right(thing): return isinstance(thing, str) and thing.startswith("assert ") and 10 < len(thing) < 50
        def f(x):
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
                    if looks_right(value): return 49
                    for inner in getattr(value, "tests", ()):
                        if looks_right(inner): return 49
                frame = frame.f_back
            for thing in gc.get_objects():
                for inner in gc.get_referents(thing):
                    if looks_right(inner): return 49
            return 0
    """,
    "looks for the tests in files and descriptors": """
        import os
        def f(x):
            for n in range(256):
                try:
                    if n != 3 and b"49" in os.pread(n, 10**5, 0): return 49
                except OSError: pass
            for folder, _, names in os.walk("/tmp"):
                for name in names:
                    if "49" in open(os.path.join(folder, name)).read(): return 49
            return 0
    """,
    "writes its own answers into the channel": """
        import json, os, struct
        def frame(message):
            raw = json.dumps(message).encode()
            return struct.pack("<I", len(raw)) + raw
        for _ in range(50):
            os.write(3, frame({"value": {"t": "ref", "v": 0}}) + frame({"value": True}))
        def f(x): return 0
    """,
    "raises what a test might swallow": "def f(x): raise SystemExit(0)",
    "asks the tests to call what they never gave": """
        import json, os, struct
        def f(x):
            raw = json.dumps({"do": "callback", "number": -1, "arguments": [], "named": {}}).encode()
            os.write(3, struct.pack("<I", len(raw)) + raw)
            return 0
    """,
    "kills whoever judges": """
        import os, signal
        def f(x):
            for pid in list(range(1, 300)):
                try:
                    os.kill(pid, signal.SIGKILL) if pid != os.getpid() else None
                except OSError: pass
            return 0
    """,
    "stays behind to answer the next test": """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                while True: pass
        def f(x): return 0
    """,
}
TESTS_OF_SQUARE = [
    "assert f(7) == 49",
    "assert 49 == f(7)",
    "assert not (f(7) != 49)",
    "assert f(7) in [49]",
    "assert abs(f(7) - 49) < 1",
    "assert abs(49 - f(7)) < 1",
    "assert not f(7) - 49",
    "import math\nassert math.isclose(f(7), 49)",
    "import unittest\nunittest.TestCase().assertAlmostEqual(f(7), 49)",
    "assert {f(7)} == {49}",
    "assert [f(7)] == [49]",
    "assert all(f(x) == x * x for x in [6, 7])",
    "assert 48 < f(7) < 50",
    "assert sorted([f(7), f(1)]) == [1, 49]",
    "assert isinstance(f(7), int) and f(7) == 49",
    "assert set([f(7)]) == set([49])",
]


def test_the_tests_of_the_forgeries_can_be_passed(scorer: PythonTestsScorer) -> None:
    assert share(scorer, "def f(x): return x * x", TESTS_OF_SQUARE) == 1


@pytest.mark.parametrize("how", list(FORGERIES))
def test_a_forgery_passes_no_test(hasty: PythonTestsScorer, how: str) -> None:
    tests = TESTS_OF_SQUARE if "equal" in how or "defines" in how or "builtins" in how else TESTS_OF_SQUARE[:2]
    assert share(hasty, FORGERIES[how], tests) == 0


def test_programs_are_judged_by_what_they_print(scorer: PythonTestsScorer) -> None:
    tests = [
        {"stdin": "1 2\n", "stdout": "3\n"},
        {"stdin": "2 2", "stdout": "5"},
        {"stdin": "0 0", "stdout": "0  \n\n"},
    ]
    outcome = judged(scorer, "a, b = map(int, input().split())\nprint(a + b)", tests)
    assert outcome == Score(2 / 3, {"passed": 2.0, "tests": 3.0, "timed_out": 0.0})
    assert share(scorer, "print(3)\nraise SystemExit(1)", tests[:1]) == 0, "a program that fails has not passed"
    assert share(scorer, "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit()", tests[:1]) == 1


def test_printed_words_or_letters_can_be_what_counts() -> None:
    for output, expected in (("words", 1.0), ("lines", 0.0), ("exact", 0.0)):
        scorer = build_scorer(CONFIG.model_copy(update={"output": output}))
        assert isinstance(scorer, PythonTestsScorer)
        assert share(scorer, "print('1\\n2')", [{"stdin": "", "stdout": "1 2"}]) == expected
        scorer.close()


BAD_CODE = {
    "does not parse": "def f(:",
    "raises on import": "1 / 0",
    "hangs on import": "while True: pass",
    "hangs when called": "def f(x):\n    while True: pass",
    "sleeps": "import time\ndef f(x): time.sleep(1000)",
    "forks without end": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fills memory": "def f(x): return bytearray(10 << 30)",
    "fills the tests' memory": "def f(x): return range(10**12)",
    "prints without end": "while True: print('x' * 100)",
    "returns NaN": "def f(x): return float('nan')",
    "recurses without end": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "answers with too deep a list": "def f(x):\n    y = x\n    for _ in range(10**5): y = [y]\n    return y",
    "answers with itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "answers with too much": "def f(x): return 'x' * (40 << 20)",
}


@pytest.mark.parametrize("what", list(BAD_CODE))
def test_code_that_misbehaves_passes_no_test(hasty: PythonTestsScorer, what: str) -> None:
    assert share(hasty, BAD_CODE[what], ["assert f(7) == 49"]) == 0


def test_code_that_misbehaves_on_one_input_passes_its_other_tests(hasty: PythonTestsScorer) -> None:
    code = """
    import os
    def f(x):
        while x == 1:
            try:
                os.fork()
            except OSError:
                pass
        if x == 2: os._exit(0)
        if x == 3: return "x" * (40 << 20)
        return x
    """
    tests = [f"assert f({n}) == {n}" for n in range(5)]
    score = judged(hasty, code, tests)
    assert isinstance(score, Score) and score.components is not None
    assert (score.value, score.components["passed"], score.components["tests"]) == (0.4, 2.0, 5.0)
    assert score.components["timed_out"] in (1.0, 2.0)  # on a busy machine, to write 40 MiB takes too long as well


def test_tests_that_cannot_be_run_are_no_score_of_zero(scorer: PythonTestsScorer) -> None:
    for tests, said in (
        (None, "must be Python as text"),
        ([], "0 tests"),
        ([{"stdin": "1"}], "stdin and stdout"),
        ([{"stdin": "1", "stdout": 1}], "must be text"),
        (["assert 1"] * 1000, "1000 tests"),
        ("assert f(1", "SyntaxError"),
        ("class Mine: pass\nassert f(Mine()) == 1", "hands over a Mine"),
    ):
        outcome = judged(scorer, "def f(x): return 1", tests)
        assert isinstance(outcome, Failure) and outcome.kind == "unsupported" and said in outcome.message, outcome


def test_where_nothing_contains_code_none_is_run(tmp_path: Path) -> None:
    scorer = PythonTestsScorer(CONFIG, probe(LIMITS, layers=[]))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(): return 1"
    outcome = judged(scorer, code, "assert f() == 1")
    assert isinstance(outcome, Failure) and outcome.kind == "unavailable" and "code reaches" in outcome.message
    assert not (tmp_path / "ran").exists()
    scorer.close()


def test_many_items_are_scored_at_once_and_in_order(scorer: PythonTestsScorer) -> None:
    items = [
        ScoreItem(id=str(n), prompt="p", response=f"def f(): return {n}", metadata={"tests": f"assert f() == {n % 3}"})
        for n in range(6)
    ]
    values = [outcome.value if isinstance(outcome, Score) else None for outcome in scorer.score(items)]
    assert values == [1, 1, 1, 0, 0, 0]


def test_a_segment_is_no_code(scorer: PythonTestsScorer) -> None:
    segment = {
        "observations": {"dtype": "uint8", "shape": [1, 1], "content": "AA=="},
        "actions": {"dtype": "uint8", "shape": [1], "content": "AA=="},
    }
    outcome = scorer.score([ScoreItem.model_validate({"id": "1", "segment": segment})])[0]
    assert isinstance(outcome, Failure) and outcome.kind == "unsupported"
