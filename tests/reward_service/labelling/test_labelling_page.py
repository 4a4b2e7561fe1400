"""The labelling page in a real browser: keys, taps, clips, reloads, tokens, and what goes wrong."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.store.redis_server import PrivateRedis
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.preferences.records import Comparison, Label, TextCandidate
from tests.needs import CHROMIUM, require, require_module
from tests.reward_service.labelling.label_service import TOKEN, Service, clips, labelling_service, private_redis, text

playwright_api = require_module("playwright.sync_api")
Page = Any  # of playwright, as its browser is
OpenPage = Callable[..., Page]
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    require("chromium")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[OpenPage]:
    """A page in a browser profile of its own. Whatever it asks of another host, or breaks of its policy, fails."""
    opened: list[Any] = []
    complaints: list[str] = []

    def check(service: Service, url: str) -> None:
        if not url.startswith((service.url, "data:")):
            complaints.append(f"asked {url}")

    def open_page(service: Service, *, fragment: str = f"#token={TOKEN}&name=ada", phone: bool = False) -> Page:
        context = chromium.new_context(
            viewport=PHONE if phone else DESK,
            has_touch=phone,
            is_mobile=phone,
            color_scheme="dark" if phone else "light",
        )
        context.set_default_timeout(WAIT_MS)
        opened.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"an error: {error}"))
        page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
        page.on("request", lambda request: check(service, request.url))
        page.goto(f"{service.url}/label{fragment}")
        return page

    yield open_page
    for context in opened:
        context.close()
    assert complaints == []


def shown(page: Page) -> str:
    """The id of the comparison that is shown, once it is there with its clips."""
    page.wait_for_selector("body[data-state=work]")
    if page.locator("canvas").count():
        page.wait_for_selector("body[data-clips=shown]")
    found: str = page.get_attribute("#work", "data-comparison")
    return found


def next_one(page: Page, before: str) -> None:
    page.wait_for_function(
        "before => document.body.dataset.state !== 'work' ||"
        "          document.querySelector('#work').dataset.comparison !== before",
        arg=before,
    )


def say(page: Page, key: str) -> str:
    """Presses a key for what is shown, and waits for what comes next. Returns what it was said of."""
    comparison = shown(page)
    page.keyboard.press(key)
    next_one(page, comparison)
    return comparison


def standing(service: Service, count: int) -> list[Label]:
    """What was said, once so many labels are there: they go out behind the page's back."""
    for _ in range(100):
        labels = service.store.books().standing()
        if len(labels) >= count:
            break
        time.sleep(0.05)
    assert len(labels) == count
    return labels


def test_ten_comparisons_with_a_reload_in_the_middle_are_ten_labels_and_none_twice(
    service: Service, open_page: OpenPage
) -> None:
    service.store.add([clips(n) if n % 3 == 0 else text(n) for n in range(10)])
    page = open_page(service)
    keys = ["ArrowLeft", "ArrowRight", "1", "2", "f", "j", "t", "ArrowDown", "s", "ArrowLeft"]
    asked = []
    for number, key in enumerate(keys):
        if number == 5:
            before = shown(page)
            page.reload()
            assert shown(page) == before  # its lease was this page's, and is again
        asked.append(say(page, key))
    page.wait_for_selector("#nothing:not([hidden])")
    labels = standing(service, 10)
    assert max(Counter(label.comparison_id for label in labels).values()) == 1
    assert {label.rater for label in labels} == {"ada"}
    said = {label.comparison_id: label for label in labels}
    kinds = {"ArrowLeft": "first", "1": "first", "f": "first", "ArrowRight": "second", "2": "second", "j": "second"}
    kinds |= {"t": "tie", "ArrowDown": "tie", "s": "skip"}
    for key, comparison in zip(keys, asked, strict=True):
        label = said[comparison]
        on_screen = {"left": 0, "right": 1}.get(label.choice or "")
        place = None if on_screen is None else label.shown.index(on_screen)
        assert {0: "first", 1: "second", None: label.choice}[place] == kinds[key], key
        assert label.duration_s > 0


def test_what_is_chosen_is_what_was_on_that_side(service: Service, open_page: OpenPage) -> None:
    service.store.add([text(n) for n in range(6)])
    page = open_page(service)
    chosen = {}
    for _ in range(6):
        comparison = shown(page)
        chosen[comparison] = page.inner_text("#candidates article:nth-child(2) .text")
        page.keyboard.press("ArrowRight")
        next_one(page, comparison)
    for label in standing(service, 6):
        candidates = service.store.comparison(label.comparison_id).candidates
        assert label.places is not None
        best = candidates[label.places.index(0)]
        assert isinstance(best, TextCandidate) and best.response == chosen[label.comparison_id]


def test_a_response_is_text_and_never_a_part_of_the_page(service: Service, open_page: OpenPage) -> None:
    wicked = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b> {{1+1}}"
    candidates = [TextCandidate(prompt=wicked, response=response) for response in (wicked, "", "\u202eturned round")]
    service.store.add([Comparison.of(candidates[:2], metadata={"question": wicked}), Comparison.of(candidates[1:])])
    page = open_page(service)
    shown(page)
    assert page.title() == "Which is better?"
    assert page.locator("#work b, #work img, #work script").count() == 0
    assert page.inner_text("#asked") == wicked and page.inner_text("#question") == wicked
    assert "(an empty response)" in page.inner_text("#candidates")


def test_a_rater_may_take_an_answer_back_and_give_another(service: Service, open_page: OpenPage) -> None:
    service.store.add([text(n) for n in range(3)])
    page = open_page(service)
    first = say(page, "ArrowLeft")
    second = shown(page)
    page.keyboard.press("u")
    next_one(page, second)
    assert shown(page) == first
    assert say(page, "t") == first
    assert say(page, "ArrowLeft") == second
    third = say(page, "ArrowLeft")
    page.wait_for_selector("#nothing:not([hidden])")
    page.keyboard.press("u")  # the last one too
    assert say(page, "s") == third
    labels = standing(service, 3)
    assert {label.comparison_id: label.choice for label in labels}[first] == "tie"
    assert {label.comparison_id: label.choice for label in labels}[third] == "skip"


def test_an_answer_that_came_too_late_is_said_and_the_next_one_is_shown(
    redis: PrivateRedis, tmp_path: Path, open_page: OpenPage
) -> None:
    with labelling_service(redis, tmp_path, lease_ttl_s=1.0) as service:
        service.store.add([text(1), text(2)])
        page = open_page(service)
        late = shown(page)
        page.wait_for_timeout(1200)
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("() => document.querySelector('#note').textContent.includes('gone to somebody else')")
        assert service.store.books().standing() == []
        said: list[str] = []
        while len(said) < 2:  # on a slow machine one of these may be too late as well
            comparison, before = shown(page), len(service.store.books().standing())
            page.keyboard.press("ArrowLeft")
            page.wait_for_function("() => pending.length === 0")
            said += [comparison] * (len(service.store.books().standing()) - before)
        assert late in said and len(set(said)) == 2


def test_the_token_is_asked_for_once_and_a_wrong_one_is_said(service: Service, open_page: OpenPage) -> None:
    service.store.add([text(n) for n in range(4)])
    page = open_page(service, fragment="")
    page.fill("#name", "ada")
    assert not page.is_visible("#token")  # a service without a token never asks
    page.keyboard.press("Enter")
    page.wait_for_selector("#token:visible")
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#error').textContent.includes('not the right one')")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    shown(page)
    page.reload()
    shown(page)
    assert TOKEN not in page.url and TOKEN not in page.content()
    fragment = open_page(service)
    shown(fragment)
    assert TOKEN not in fragment.url  # taken out of the address, which is remembered and shared


def test_an_outage_is_said_in_plain_words_and_waited_out(tmp_path: Path, open_page: OpenPage) -> None:
    with private_redis(tmp_path / "redis") as redis, labelling_service(redis, tmp_path) as service:
        service.store.add([text(n) for n in range(3)])
        page = open_page(service)
        first = shown(page)
        page.wait_for_function("() => ahead.length === 1")
        assert redis._process is not None
        redis._process.kill()
        redis._process.wait()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("() => document.querySelector('#error').textContent.includes('Trying again')")
        assert shown(page) != first  # what was fetched ahead can be looked at meanwhile
        redis.start()
        page.wait_for_function("() => document.querySelector('#error').textContent === ''")
        assert [label.comparison_id for label in standing(service, 1)] == [first]
        say(page, "ArrowLeft")
        standing(service, 2)


def test_a_ranking_is_given_by_keys_best_first(service: Service, open_page: OpenPage) -> None:
    service.store.add([text(1, responses=4)])
    page = open_page(service)
    shown(page)
    for key in ("3", "Backspace", "2", "1", "t", "4", "3"):  # 2 is the best, 1 and 4 are equal, 3 is the last
        page.keyboard.press(key)
    assert page.inner_text("article:nth-child(4) .place") == "Place 2"
    page.keyboard.press("Enter")
    page.wait_for_selector("#nothing:not([hidden])")
    [label] = standing(service, 1)
    assert label.ranks is not None
    assert [label.ranks[index] for index in label.shown] == [1, 0, 2, 1]


@pytest.mark.parametrize("phone", [False, True])
def test_two_raters_rank_the_same_texts_with_ties_undo_and_a_reload_and_see_how_far_they_agree(
    service: Service, open_page: OpenPage, phone: bool
) -> None:
    service.store.config = LabellingConfig(labels_per_comparison=2)
    comparison = text(1, responses=3)
    service.store.add([comparison])

    def said_by(page: Page, best_first: list[str], *, tied: bool) -> None:
        """Ranks the responses in this order; `tied`: the last two are equal."""
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shown(page)
        cards = page.locator("article .text").all_inner_texts()
        for place, response in enumerate(best_first):
            if tied and place == 2:
                page.wait_for_timeout(300)
                page.tap("#same") if phone else page.keyboard.press("t")
            number = cards.index(response) + 1
            page.tap(f"article:nth-child({number}) .place") if phone else page.keyboard.press(str(number))
        page.wait_for_timeout(300)  # the page takes no second tap of the one before
        page.tap("#done") if phone else page.keyboard.press("Enter")
        page.wait_for_selector("#nothing:not([hidden])")

    texts = [candidate.response for candidate in comparison.candidates if isinstance(candidate, TextCandidate)]
    ada = open_page(service, phone=phone)
    said_by(ada, texts[::-1], tied=False)
    standing(service, 1)
    page_undo = ada.locator("#undo")
    page_undo.wait_for(state="visible")
    ada.tap("#undo") if phone else ada.keyboard.press("u")
    shown(ada)
    ada.reload()  # in the middle of a ranking: the same one is there again
    assert shown(ada) == comparison.id
    said_by(ada, texts, tied=True)
    assert not ada.locator("#agreement").is_visible()
    bea = open_page(service, fragment=f"#token={TOKEN}&name=bea", phone=phone)
    said_by(bea, texts, tied=False)
    found = {label.rater: label.ranks for label in standing(service, 2)}
    assert found == {"ada": (0, 1, 1), "bea": (0, 1, 2)}
    for page in (ada, bea):
        page.wait_for_selector("#agreement:not([hidden])")
        assert page.inner_text("#agreement").startswith("Raters agree on 67 % of 3 shared pairs, alpha ")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_a_phone_it_is_stacked_and_answered_by_touch(service: Service, open_page: OpenPage) -> None:
    long = "A response of some length, which goes on. " * 40
    wide = "unbreakable" * 30
    service.store.add(
        [Comparison.of([TextCandidate(prompt="p", response=response) for response in (long, wide)]), clips(1)]
    )
    page = open_page(service, phone=True)
    for button in ("#first", "#tie"):
        comparison = shown(page)
        cards = [card.bounding_box() for card in page.query_selector_all("article")]
        assert cards[1]["y"] >= cards[0]["y"] + cards[0]["height"] and cards[0]["x"] == cards[1]["x"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for control in page.query_selector_all("footer button:visible, header button:visible"):
            box = control.bounding_box()
            assert box["height"] >= 44 and box["width"] >= 44
            assert box["y"] + box["height"] <= PHONE["height"]  # within reach without scrolling
        if page.locator("canvas").count():
            assert cards[1]["y"] + cards[1]["height"] <= page.query_selector("footer").bounding_box()["y"]
        page.wait_for_timeout(300)  # the page takes no second tap of the one before
        page.tap(button)
        next_one(page, comparison)
    standing(service, 2)


def test_it_can_be_used_by_keyboard_and_read_aloud(service: Service, open_page: OpenPage) -> None:
    service.store.add([clips(0)])
    page = open_page(service)
    shown(page)
    assert page.locator("canvas").first.get_attribute("aria-label") == "CartPole-v1, 20 steps"
    assert page.locator("[aria-live=polite]").count() == 1 and page.locator("[role=alert]").count() == 1
    assert page.get_attribute("html", "lang") == "en"
    names = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.id"))
    assert {"who", "first", "tie", "second", "skip", "pause"} <= names
    page.focus("#pause")
    page.keyboard.press("Space")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    still = page.evaluate("player.at")
    page.wait_for_timeout(100)
    assert page.evaluate("player.at") == still


def test_both_clips_run_on_one_clock(service: Service, open_page: OpenPage) -> None:
    service.store.add([clips(0)])
    page = open_page(service)
    shown(page)
    assert page.evaluate("player.shown.length") == 2
    moved = page.evaluate(
        "async () => { const pixels = () => [...document.querySelectorAll('canvas')].map(c => c.toDataURL());"
        "const before = pixels(), moved = [false, false];"
        "for (let i = 0; i < 12; i++) { await sleep(100); pixels().forEach((p, j) => moved[j] ||= p !== before[j]); }"
        "return moved; }"
    )
    assert moved == [True, True]
