"""How many tokens a call will take, before a server has counted them. The tokenizer is the server's, so these are estimates."""

from __future__ import annotations

import io

from PIL import Image

from longtake.llm.calls import ChatCall

BYTES_PER_TOKEN = 4.0
"""Of UTF-8, digits aside: 4 for English, less than 1 token per character for Chinese."""
MESSAGE_TOKENS = 12
"""What a chat template puts around a call."""
PATCH = 28
"""Side in pixels of what becomes one token in Qwen2.5-VL; tiles of OpenAI's models come out at as many within a factor of 1.5."""
IMAGE_TOKENS = 2
"""Start and end of an image."""


def estimate_tokens(call: ChatCall) -> int:
    """Tokens of the question; the answer takes up to `call.max_tokens` more. Raises ValueError for bytes that are no image."""
    texts = text_tokens(call.text) + text_tokens(call.system or "")
    return MESSAGE_TOKENS + texts + sum(image_tokens(part) for part in call.parts if isinstance(part, bytes))


def text_tokens(text: str) -> int:
    """Digits count one each: most tokenizers cut numbers into them, and captions are full of times."""
    digits = sum(map(text.count, "0123456789"))
    return digits + round((len(text.encode("utf-8", "replace")) - digits) / BYTES_PER_TOKEN)


def image_tokens(image: bytes) -> int:
    """From width and height, which stand in the head of the file: nothing is decoded. Raises ValueError."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            width, height = opened.size
    except OSError as error:
        raise ValueError(f"{len(image)} bytes of a message are no image: {error}") from None
    return IMAGE_TOKENS + -(-width // PATCH) * -(-height // PATCH)
