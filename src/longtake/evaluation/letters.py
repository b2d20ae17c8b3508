"""Scoring by the log-probs of the option letters: what a base model knows before it can write an answer.

Legend: M rows of a batch, P prompt tokens, T tokens of the padded row, D model width, W vocabulary, A position axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch

from longtake.algorithms.logprobs import processed_logits
from longtake.errors import RowError
from longtake.models.family import Model
from longtake.types import Prompt

FORM = "<answer>{}</answer>"
"""The answer as the prompt's instruction asks for it, without reasoning before it: the same words for every option."""


def letter_logprobs(
    model: Model, prompts: Sequence[Prompt], letters: Sequence[tuple[str, ...]], max_tokens: int = 32_768
) -> list[dict[str, float]]:
    """log p(letter | prompt + "<answer>") of each row's own option letters; banned tokens excluded, temperature 1.

    The model reads the prompt and the tokens that all options of the row share, once; each option is then the ONE token that sets it
    apart, whether the tokenizer writes ">" and "A" or ">A". `max_tokens` bounds the padded tokens of one forward, not the result.
    Raises RowError for a row without options (see `option_tokens`).
    """
    options = [option_tokens(model, row) for row in letters]
    lengths = [len(prompt.token_ids) + len(shared) for prompt, (shared, _) in zip(prompts, options, strict=True)]
    scores: list[dict[str, float]] = []
    for start, stop in _batches(lengths, max_tokens):
        last = _last_logprobs(model, prompts[start:stop], [shared for shared, _ in options[start:stop]])
        scores += [
            {letter: float(row[token]) for letter, token in own.items()} for row, (_, own) in zip(last, options[start:stop], strict=True)
        ]
    return scores


def best_letter(logprobs: dict[str, float]) -> str:
    """The most probable of the row's own letters; a tie goes to the first in the row's order."""
    return max(logprobs, key=logprobs.__getitem__)


def option_tokens(model: Model, letters: tuple[str, ...]) -> tuple[list[int], dict[str, int]]:
    """Token ids shared by all options of a row, and for each letter the token that comes next.

    Raises RowError when the row has fewer than two options, or when the tokenizer does not spell them alike but for one token.
    """
    if len(letters) < 2:
        raise RowError(
            f"a row with {len(letters)} options under letters scoring",
            rule="letters scoring compares the option letters of multiple-choice rows",
            remedy="set scoring to generate, or leave the open-ended rows out",
        )
    spellings = [model.text_ids(FORM.format(letter)) for letter in letters]
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*spellings, strict=False))]
    rests = [ids[len(shared) :] for ids in spellings]
    # One token must tell the options apart, and the same tokens must follow it: else the scores of ">A" and of ">" would be compared.
    if not all(rests) or len({rest[0] for rest in rests}) != len(letters) or len({tuple(rest[1:]) for rest in rests}) != 1:
        raise RowError(
            f"options {', '.join(letters)} do not differ in one token",
            rule="the answers of a row are the same tokens but for the letter's",
            remedy="letter the options A, B, C, ...",
        )
    return shared, {letter: rest[0] for letter, rest in zip(letters, rests, strict=True)}


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[int, int]]:
    """Neighbouring rows whose padded size stays within the bound; a longer row goes alone."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or max(lengths[start : stop + 1]) * (stop + 1 - start) > max_tokens:
            yield start, stop
            start = stop


@torch.no_grad()
def _last_logprobs(model: Model, prompts: Sequence[Prompt], shared: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probs [M, W] of the token after each row's prompt and shared tokens. Rows are right-padded; causal attention never sees it."""
    rows = [torch.cat([prompt.token_ids, torch.tensor(ids, dtype=torch.long)]) for prompt, ids in zip(prompts, shared, strict=True)]
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad_id)
    positions = torch.stack([_positions(prompt, len(ids), token_ids.shape[1]) for prompt, ids in zip(prompts, shared, strict=True)], dim=1)
    videos = [(row, span.start, span.tokens) for row, prompt in enumerate(prompts) for span in prompt.spans]
    mask = (torch.arange(token_ids.shape[1]) < lengths[:, None]).long()
    hidden = model.decoder(
        inputs_embeds=model.embed(token_ids.to(model.device), videos),
        position_ids=positions.to(model.device),
        attention_mask=mask.to(model.device),
        cache=None,
    )
    final = hidden[torch.arange(len(rows), device=hidden.device), (lengths - 1).to(hidden.device)]
    return processed_logits(model.head(final), 1.0, model.banned_ids).log_softmax(-1).cpu()


def _positions(prompt: Prompt, num_shared: int, total: int) -> torch.Tensor:
    """[A, T]: the prompt's own, then counting on from its next position on every axis (padding included; it is masked)."""
    after = prompt.next_position + torch.arange(total - len(prompt.token_ids))
    return torch.cat([prompt.position_ids, after.expand(len(prompt.position_ids), -1)], dim=1)
