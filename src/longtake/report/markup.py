"""HTML that escapes by construction: text becomes markup only through `el`, which escapes whatever is not already `Html`."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable


class Html(str):
    """Markup. Everything else is text from somewhere, and is escaped."""

    __slots__ = ()


REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
VOID = frozenset({"meta", "img", "br", "hr", "col", "input"})


def text(value: object) -> Html:
    """A value as text: escaped, control characters and lone surrogates shown as a replacement sign."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(clean(str(value)), quote=True))


def clean(value: str) -> str:
    """Control characters and lone surrogates as a replacement sign: HTML and UTF-8 cannot hold them."""
    return "".join(char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") else REPLACEMENT for char in value)


def el(name: str, /, *children: object, **attributes: object) -> Html:
    """`el("td", "<b>", class_="right")` -> `<td class="right">&lt;b&gt;</td>`. An attribute of None is left out, of True stands alone."""
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None and value is not False]
    head = "".join(f" {key}" if value is True else f' {key}="{text(value)}"' for key, value in pairs)
    if name in VOID:
        return Html(f"<{name}{head}>")
    return Html(f"<{name}{head}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other, each escaped unless it is markup; None is nothing."""
    return Html("".join(text(part) for part in parts if part is not None))


def table(head: Iterable[object], rows: Iterable[Iterable[object]], *, numeric_from: int = 1) -> Html:
    """A table that scrolls sideways on a narrow screen; columns from `numeric_from` on are right-aligned."""

    def cells(kind: str, values: Iterable[object]) -> Html:
        return join(el(kind, value, class_="num" if column >= numeric_from else None) for column, value in enumerate(values))

    body = join(el("tr", cells("td", row)) for row in rows)
    return el("div", el("table", el("thead", el("tr", cells("th", head))), el("tbody", body)), class_="scroll")
