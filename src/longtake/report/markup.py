"""HTML that escapes by construction: text becomes markup only through `el`, which escapes whatever is not already `Html`."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """Markup. Everything else is text from somewhere, and is escaped."""

    __slots__ = ()


VOID = frozenset({"meta", "img", "br", "hr", "col"})


def text(value: object) -> Html:
    """A value as text: escaped, control characters and lone surrogates shown as a replacement sign."""
    if isinstance(value, Html):
        return value
    printable = "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in str(value))
    return Html(html.escape(printable, quote=True))


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
