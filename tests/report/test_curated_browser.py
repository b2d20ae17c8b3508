"""The script of `curate view`'s page, in a real browser: filters that live in the address, and keys that go from row to row."""

import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest

from longtake.config.curate_view import CurateViewConfig
from longtake.report.curated import write_curated_page
from longtake.testing.curated_run import make_world, write_curated_run

pytestmark = pytest.mark.long
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FILTERS = ("category", "state", "reason", "stage", "split")


class Cards(HTMLParser):
    """Attributes of the cards, what is said of their number, and where the keyboard is."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.cards: list[dict[str, str | None]] = []
        self.status, self.title, self._inside = "", "", ""
        self.feed(dom)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag == "article":
            self.cards.append(named)
        self._inside = "title" if tag == "title" else "status" if named.get("id") == "shown" else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside:
            setattr(self, self._inside, getattr(self, self._inside) + data)

    @property
    def shown(self) -> list[dict[str, str | None]]:
        return [card for card in self.cards if "hidden" not in card]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    if BROWSER is None:
        pytest.skip("no chromium is installed: the page's script is not tested")
    folder = tmp_path_factory.mktemp("browser")
    run = write_curated_run(folder / "run", make_world(folder / "world", num_videos=2))
    return write_curated_page(CurateViewConfig(run=run)).path


def opened(page: Path, script: str = "", **address: str) -> Cards:
    """The page as the browser has it; `script` runs at its end, which our policy would forbid."""
    if script:
        text = re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", page.read_text(encoding="utf-8"))
        page = page.with_name("scripted.html")
        page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    url = f"{page.as_uri()}#{urlencode(address)}"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom")
    done = subprocess.run([str(BROWSER), *flags, url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Cards(done.stdout)


def test_without_a_filter_every_card_is_shown(page: Path):
    found = opened(page)
    assert len(found.shown) == len(found.cards) > 10
    assert found.status == f"{len(found.cards)} of {len(found.cards)} shown"


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_shows_exactly_what_has_the_value(page: Path, name: str):
    counts = Counter(card.get(f"data-{name}") for card in opened(page).cards)
    value, count = next((value, count) for value, count in counts.most_common() if value and count < counts.total())
    found = opened(page, **{name: value})
    assert [card.get(f"data-{name}") for card in found.shown] == [value] * count
    assert found.status == f"{count} of {len(found.cards)} shown"


def test_filters_add_up_and_a_search_reads_the_text(page: Path):
    every = opened(page).cards
    dropped = [card for card in every if card["data-state"] == "dropped"]
    category = Counter(card["data-category"] for card in dropped).most_common()[0][0]
    both = opened(page, state="dropped", category=str(category)).shown
    assert [card["id"] for card in both] == [card["id"] for card in dropped if card["data-category"] == category] != []
    found = opened(page, text=" WHERE ").shown
    assert 0 < len(found) < len(every)
    assert opened(page, text="no row says this").shown == []


def test_a_value_that_nothing_has_is_told_and_hides_nothing(page: Path):
    found = opened(page, category="cooking")
    assert len(found.shown) == len(found.cards)
    assert found.status.endswith("; nothing has category = cooking")


def test_keys_go_through_what_is_shown(page: Path):
    press = "const press = key => document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
    press = press.replace("document.dispatch", "(document.activeElement || document.body).dispatch")
    said = "document.title = document.activeElement.id || document.activeElement.name;"
    shown = [card["id"] for card in opened(page, state="dropped").shown]
    for keys, place in (("j", 0), ("jjj", 2), ("jjjk", 1), ("jkkk", 0)):
        script = press + "".join(f"press('{key}');" for key in keys) + said
        assert opened(page, script, state="dropped").title == shown[place], keys
    assert opened(page, f"{press} press('/'); {said}").title == "text"


def test_a_choice_goes_to_the_address_and_reset_takes_it_back(page: Path):
    choose = (
        "const field = document.querySelector('#filters [name=state]'); field.value = 'dropped'; field.dispatchEvent(new Event('input'));"
    )
    found = opened(page, f"{choose} document.title = location.hash;")
    assert found.title == "#state=dropped" and {card["data-state"] for card in found.shown} == {"dropped"}
    found = opened(page, f"{choose} document.getElementById('reset').click(); document.title = location.hash;")
    assert found.title in ("", "#") and len(found.shown) == len(found.cards)
