"""Keys stay where they are needed: nothing that is shown or kept holds one."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from urllib.parse import quote

HIDDEN = "[key]"
SHORTEST = 8
"""Shorter keys are stand-ins, such as EMPTY, and might be words of an answer."""
_LIKE_KEYS = re.compile(r"(?i)\bbearer\s+[^\s\"',;]{4,}|\bsk-[A-Za-z0-9_*.\-]{6,}")


def hider(key: str | None) -> Callable[[str], str]:
    """A function that puts HIDDEN in place of the key, as it is and as JSON, HTML and addresses write it."""
    if key is None or len(key) < SHORTEST:
        return str
    spellings = {key, json.dumps(key)[1:-1], html.escape(key), quote(key), quote(key, safe="")}
    pattern = re.compile("|".join(re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True)))
    return lambda text: pattern.sub(HIDDEN, text)


def without_key_likes(text: str) -> str:
    """For messages of servers, which may show a part of a key, or a key that is not ours."""
    return _LIKE_KEYS.sub(HIDDEN, text)
