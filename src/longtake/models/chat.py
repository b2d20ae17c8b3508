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
        self._tokenizer = tokenizer
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True  # the library's name for: special tokens in a text are encoded as text
        self._special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._cut = re.compile("(" + "|".join(re.escape(token) for token in sorted(self._special, key=len, reverse=True)) + ")")

    def text_ids(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def token_ids(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """Raises ModelError when the template alters the texts it is given (it cannot then be told what the template wrote)."""
        texts = [message.text for message in messages]
        marks = [f"\ue000{index}\ue001" for index in range(len(texts))]
        marked = self._render(messages, marks, add_generation_prompt)
        ids: list[int] = []
        for piece in self._cut.split(marked):
            if piece in self._special:
                ids.append(self._special[piece])
            elif piece:
                ids += self.text_ids(re.sub("\ue000([0-9]+)\ue001", lambda match: texts[int(match[1])], piece))
        self._check_faithful(marked, texts, self._render(messages, texts, add_generation_prompt))
        return ids

    def _render(self, messages: Sequence[Message], texts: Sequence[str], add_generation_prompt: bool) -> str:
        conversation: list[Any] = [_as_dict(message, text) for message, text in zip(messages, texts, strict=True)]
        rendered = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)
        assert isinstance(rendered, str)
        return rendered

    @staticmethod
    def _check_faithful(marked: str, texts: Sequence[str], rendered: str) -> None:
        if re.sub("\ue000([0-9]+)\ue001", lambda match: texts[int(match[1])], marked) != rendered:
            raise ModelError(
                "a chat template that changes the texts of messages",
                rule="the template writes each text exactly as it is given",
                remedy="remove filters such as `trim` from the checkpoint's chat template",
            )


def _as_dict(message: Message, text: str) -> dict[str, object]:
    """The form chat templates expect; a message without video is a plain string, which every template understands."""
    if not message.num_videos:
        return {"role": message.role, "content": text}
    return {"role": message.role, "content": [*({"type": "video"} for _ in range(message.num_videos)), {"type": "text", "text": text}]}
