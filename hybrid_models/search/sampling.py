"""Texts drawn from a word decoder's own distribution."""

# ruff: noqa: N803, N806 - shape suffixes, see contract.py

from __future__ import annotations

import torch
from torch import Tensor

from hybrid_models import shapes
from hybrid_models.search.beam import State, Step
from hybrid_models.search.options import SearchOptions
from hybrid_models.symbols import PAD


def sample_words(
    step: Step,
    state: State,
    memory: State,
    max_length: int,
    options: SearchOptions,
    count: int,
) -> Tensor:
    """Draws outputs from the model's own distribution, with torch's global random numbers.

    It ends when all outputs have; a device that would have to be waited for goes on to the most tokens.

    Args:
        step: the model; see `Step`.
        state: initial state of each source, leading axis B.
        memory: what does not change from step to step, leading axis B.
        max_length: most tokens of an output, the end symbol included; at least 1.
        options: `start`, `end` and `never` count.
        count: outputs of each source.

    Returns:
        int64 [B·count,T]: `count` outputs of each source side by side, without the start symbol, `PAD` after the end
        symbol.
    """
    state = {name: tensor.repeat_interleave(count, dim=0) for name, tensor in state.items()}
    like = next(iter(state.values()))
    tokens_N = torch.full((len(like),), options.start, device=like.device)
    ended_N = torch.zeros_like(tokens_N, dtype=torch.bool)
    written: list[Tensor] = []
    for _ in range(max_length):
        log_probs_NV, state = step(tokens_N, state, memory)
        for token in options.never:
            log_probs_NV[:, token] = float("-inf")
        tokens_N = _draw(log_probs_NV.exp())
        written.append(tokens_N.masked_fill(ended_N, PAD))
        ended_N = ended_N | (tokens_N == options.end)
        if not shapes.has_shapes(like.device) and bool(ended_N.all()):
            break
    return torch.stack(written, dim=1)


def _draw(probs_NV: Tensor) -> Tensor:
    """A token [N] of each distribution: where a uniform number falls among its cumulated probabilities. One number for
    each text; `torch.multinomial` draws one for each word of the vocabulary."""
    sums_NV = probs_NV.cumsum(dim=1)
    drawn_N1 = torch.rand_like(sums_NV[:, :1]) * sums_NV[:, -1:]  # below their sum: the number is 1 - 2⁻²⁴ at most
    return torch.searchsorted(sums_NV, drawn_N1, right=True).squeeze(1)
