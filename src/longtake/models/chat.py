"""Chat template to tokens, with no way for a text to forge special tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from longtake.errors import ModelError
from longtake.models.family import Message


class ChatTokenizer:
    """Renders messages through the tokenizer's own chat template and tokenises the result.

    The rendered string is cut at the special tokens that the TEMPLATE wrote; what lies between is encoded with special tokens
    switched off. For texts without special-token strings that is exactly what the tokenizer itself does with the whole string (it
    cuts at special tokens first); in a text that contains `<|im_end|>` or `<|video_pad|>` these stay ordinary characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path} has no chat template",
                rule="prompts are rendered by the checkpoint's own chat template",
                remedy="use the instruction-tuned checkpoint, or add its chat_template.jinja",
            )
        self._tokenizer = tokenizer
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True  # the library's name for: special tokens in a text are encoded as text
        self._special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._cut = re.compile("(" + "|".join(re.escape(token) for token in sorted(self._special, key=len, reverse=True)) + ")")

    def text_ids(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def token_ids(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """Raises ModelError when the template drops or alters a text (it could not be told what the template wrote and what the user)."""
        texts = [message.text for message in messages]
        marks = [f"\ue000{index}\ue001" for index in range(len(texts))]  # private-use characters: no template writes them
        marked = self._render(messages, marks, add_generation_prompt)
        ids: list[int] = []
        for piece in self._cut.split(marked):
            if piece in self._special:
                ids.append(self._special[piece])
            elif piece:
                ids += self.text_ids(_filled(piece, texts))
        written_once = all(marked.count(mark) == 1 for mark in marks)
        if not written_once or _filled(marked, texts) != self._render(messages, texts, add_generation_prompt):
            raise ModelError(
                "a chat template that drops or changes the texts of messages",
                rule="the template writes each text once, exactly as it is given",
                remedy="remove filters such as `trim` from the checkpoint's chat template",
            )
        return ids

    def _render(self, messages: Sequence[Message], texts: Sequence[str], add_generation_prompt: bool) -> str:
        conversation: list[Any] = [_as_dict(message, text) for message, text in zip(messages, texts, strict=True)]
        rendered = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)
        assert isinstance(rendered, str)
        return rendered


def _filled(marked: str, texts: Sequence[str]) -> str:
    return re.sub("\ue000([0-9]+)\ue001", lambda match: texts[int(match[1])], marked)


def _as_dict(message: Message, text: str) -> dict[str, object]:
    """The form chat templates expect; a message without media is a plain string, which every template understands."""
    if not message.media:
        return {"role": message.role, "content": text}
    return {"role": message.role, "content": [*({"type": kind} for kind in message.media), {"type": "text", "text": text}]}
