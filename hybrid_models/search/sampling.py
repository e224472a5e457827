"""Texts drawn from a word decoder's own distribution."""

# ruff: noqa: N803, N806 - shape suffixes, see contract.py

from __future__ import annotations

import torch
from torch import Tensor

from hybrid_models.search.beam import State, Step, look_every
from hybrid_models.search.options import SearchOptions


def sample_words(
    step: Step,
    state: State,
    memory: State,
    max_length: int,
    options: SearchOptions,
    count: int,
) -> list[list[list[int]]]:
    """Draws outputs from the model's own distribution, with torch's global random numbers.

    A device that has to be waited for is at every `LOOK_EVERY`-th step, for all that was drawn so far.

    Args:
        step: the model; see `Step`.
        state: initial state of each source, leading axis B.
        memory: what does not change from step to step, leading axis B.
        max_length: most tokens of an output, the end symbol included; at least 1.
        options: `start`, `end` and `never` count.
        count: outputs of each source.

    Returns:
        `count` outputs of each source, with the end symbol where it was drawn, without the start symbol.
    """
    state = {name: tensor.repeat_interleave(count, dim=0) for name, tensor in state.items()}
    like = next(iter(state.values()))
    tokens_N = torch.full((len(like),), options.start, device=like.device)
    written: list[Tensor] = []
    every = look_every(like.device)
    while True:
        log_probs_NV, state = step(tokens_N, state, memory)
        for token in options.never:
            log_probs_NV[:, token] = float("-inf")
        tokens_N = _draw(log_probs_NV.exp())
        written.append(tokens_N)
        if len(written) % every and len(written) < max_length:
            continue
        drawn = torch.stack(written, dim=1).tolist()
        if len(written) == max_length or all(options.end in text for text in drawn):
            break
    texts = [ended(text, options.end) for text in drawn]
    return [texts[first : first + count] for first in range(0, len(texts), count)]


def ended(text: list[int], end: int) -> list[int]:
    """A text as far as its end symbol, if it has one."""
    return text[: text.index(end) + 1] if end in text else text


def _draw(probs_NV: Tensor) -> Tensor:
    """A token [N] of each distribution: where a uniform number falls among its cumulated probabilities. One number for
    each text; `torch.multinomial` draws one for each word of the vocabulary."""
    sums_NV = probs_NV.cumsum(dim=1)
    drawn_N1 = torch.rand_like(sums_NV[:, :1]) * sums_NV[:, -1:]  # below their sum: the number is 1 - 2⁻²⁴ at most
    return torch.searchsorted(sums_NV, drawn_N1, right=True).squeeze(1)
