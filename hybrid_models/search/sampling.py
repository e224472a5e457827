"""Texts drawn from a word decoder's own distribution."""

# ruff: noqa: N803, N806 - shape suffixes, see contract.py

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

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
    beside: Tensor | None = None,
) -> list[list[list[int]]]:
    """Draws outputs from the model's own distribution, with torch's global random numbers.

    A device is waited for once, for what was drawn, and at every `LOOK_EVERY`-th step between.

    Args:
        step: the model; see `Step`.
        state: initial state of each source, leading axis B.
        memory: what does not change from step to step, leading axis B.
        max_length: most tokens of an output, the end symbol included.
        options: `start`, `end` and `never` count.
        count: outputs of each source.
        beside: int64 [B,R,L], other texts of each source that the host needs: read with the drawn ones, they do not
            have to be waited for.

    Returns:
        `count` outputs of each source, with the end symbol where it was drawn, without the start symbol; then its texts
        `beside`, to their end symbols, too.
    """
    state = {name: tensor.repeat_interleave(count, dim=0) for name, tensor in state.items()}
    first = next(iter(state.values()))
    tokens_N = torch.full((len(first),), options.start, device=first.device)
    ended_N = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    written: list[Tensor] = []
    every = look_every(first.device)
    while len(written) < max_length and (not written or len(written) % every or not ended_N.all()):
        log_probs_NV, state = step(tokens_N, state, memory)
        for token in options.never:
            log_probs_NV[:, token] = float("-inf")
        tokens_N = _draw(log_probs_NV.exp())
        written.append(tokens_N)
        ended_N |= tokens_N == options.end
    drawn_BCT = torch.stack(written, dim=1).unflatten(0, (-1, count))
    return _read([drawn_BCT] if beside is None else [drawn_BCT, beside], options.end)


def _read(parts: Sequence[Tensor], end: int) -> list[list[list[int]]]:
    """The texts of each source as far as their end symbols, of all parts int64 [B,R,L]: read at once."""
    widths = [part.shape[2] for part in parts for _ in range(part.shape[1])]
    places = [slice(last - width, last) for last, width in zip(accumulate(widths), widths, strict=True)]
    rows = torch.cat([part.flatten(1) for part in parts], dim=1).tolist()
    return [[_ended(row[place], end) for place in places] for row in rows]


def _ended(text: list[int], end: int) -> list[int]:
    """A text as far as its end symbol, if it has one."""
    return text[: text.index(end) + 1] if end in text else text


def _draw(probs_NV: Tensor) -> Tensor:
    """A token [N] of each distribution: where a uniform number falls among its cumulated probabilities. One number for
    each text; `torch.multinomial` draws one for each word of the vocabulary."""
    sums_NV = probs_NV.cumsum(dim=1)
    drawn_N1 = torch.rand_like(sums_NV[:, :1]) * sums_NV[:, -1:]  # below their sum: the number is 1 - 2⁻²⁴ at most
    return torch.searchsorted(sums_NV, drawn_N1, right=True).squeeze(1)
