"""Greedy and beam search over any word decoder: one step function, batched over sources, finished sources leave.

Scores follow Wu et al. 2016 ("Google's neural machine translation system", eq. 14) without the coverage term.
"""

# ruff: noqa: N803, N806, N815 - shape suffixes, see contract.py

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybrid_models.search.options import SearchOptions

State = dict[str, Tensor]
"""Named tensors with a leading axis that a search may index."""

Step = Callable[[Tensor, State, State], tuple[Tensor, State]]
"""`step(tokens [N], state, memory) -> (log_probs [N,V], state)`: one step of N = B·K hypotheses.

`state` is each hypothesis' own (leading axis N, hypotheses of one source side by side); `memory` belongs to the source
(leading axis B: keys, masks) and is never copied per hypothesis."""


class Hypothesis(NamedTuple):
    """The best output found for one source."""

    tokens: list[int]
    """Without start and end symbols."""
    score: float
    """log P(tokens, end | source) divided by `length_penalty` of the number of tokens with the end symbol."""


def length_penalty(length: int | Tensor, alpha: float) -> float | Tensor:
    """((5 + length) / 6)^alpha, by which log probabilities are divided (Wu et al. 2016, eq. 14)."""
    return ((5 + length) / 6) ** alpha


@contextlib.contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) without gradients; the module's mode is as before afterwards."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(was_training)


@dataclass
class _Beams:
    """The live hypotheses of the sources that are not done; B counts live sources only."""

    source_B: Tensor
    """Index of each live source in the batch."""
    tokens_BKT: Tensor
    log_prob_BK: Tensor
    """-inf where there is no hypothesis."""
    limit_B: Tensor
    """Most tokens before the end symbol."""
    ended_B: Tensor
    """How many hypotheses have ended."""
    best_B: Tensor
    """Score of the best ended hypothesis, -inf before the first."""
    state: State
    memory: State

    def keep(self, rows: Tensor) -> _Beams:
        """The beams of some live sources."""
        beam = self.log_prob_BK.shape[1]
        lines = (rows.unsqueeze(1) * beam + torch.arange(beam, device=rows.device)).flatten()
        return _Beams(
            self.source_B[rows],
            self.tokens_BKT[rows],
            self.log_prob_BK[rows],
            self.limit_B[rows],
            self.ended_B[rows],
            self.best_B[rows],
            state=_index(self.state, lines),
            memory=_index(self.memory, rows),
        )


def search(step: Step, state: State, memory: State, max_length: Tensor, options: SearchOptions) -> list[Hypothesis]:
    """Finds the best output of each source by beam search; with `beam_size` 1 this is greedy search.

    A hypothesis ends when the end symbol is among its source's `beam_size` best continuations. A source is done when
    `beam_size` hypotheses have ended or no live one can still beat the best that has; it then leaves the batch. A
    source at its `max_length` may only end. The search draws no random numbers.

    Args:
        step: the model; see `Step`. It is called with no more rows than there are unfinished sources.
        state: initial state of each source, leading axis B.
        memory: what does not change from step to step, leading axis B.
        max_length: int64 [B], on the state's device: most tokens of each output, without the end symbol.
        options: see `SearchOptions`.

    Returns:
        One hypothesis per source, in order.
    """
    beams = _start(state, memory, max_length, options)
    found = [Hypothesis([], float("-inf"))] * len(max_length)
    for length in range(int(max_length.max()) + 1 if len(max_length) else 0):
        log_probs_NV, beams.state = step(beams.tokens_BKT[:, :, -1].flatten(), beams.state, beams.memory)
        _constrain(log_probs_NV, beams, length, options)
        _advance(beams, log_probs_NV, length, options, found)
        rows = _undone(beams, options).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        if len(rows) < len(beams.source_B):
            beams = beams.keep(rows)
    return found


def sample_words(
    step: Step, state: State, memory: State, max_length: int, options: SearchOptions, count: int
) -> list[list[list[int]]]:
    """Draws outputs from the model's own distribution, with torch's global random numbers.

    Args:
        step: the model; see `Step`.
        state: initial state of each source, leading axis B.
        memory: what does not change from step to step, leading axis B.
        max_length: most tokens of an output, the end symbol included.
        options: `start`, `end` and `never` count.
        count: outputs of each source.

    Returns:
        `count` outputs of each source, with the end symbol where it was drawn, without the start symbol.
    """
    state = {name: tensor.repeat_interleave(count, dim=0) for name, tensor in state.items()}
    first = next(iter(state.values()))
    tokens_N = torch.full((len(first),), options.start, device=first.device)
    ended_N = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    written: list[Tensor] = []
    while len(written) < max_length and not ended_N.all():
        log_probs_NV, state = step(tokens_N, state, memory)
        log_probs_NV[:, list(options.never)] = float("-inf")
        tokens_N = torch.multinomial(log_probs_NV.exp(), 1).squeeze(1)
        written.append(tokens_N)
        ended_N |= tokens_N == options.end
    rows = torch.stack(written, dim=1).tolist()
    outputs = [row[: row.index(options.end) + 1] if options.end in row else row for row in rows]
    return [outputs[start : start + count] for start in range(0, len(outputs), count)]


def _start(state: State, memory: State, max_length: Tensor, options: SearchOptions) -> _Beams:
    batch, device = len(max_length), max_length.device
    log_prob_BK = torch.full((batch, options.beam_size), float("-inf"), device=device)
    log_prob_BK[:, 0] = 0.0  # one empty hypothesis, or all K would be the same
    return _Beams(
        source_B=torch.arange(batch, device=device),
        tokens_BKT=torch.full((batch, options.beam_size, 1), options.start, device=device),
        log_prob_BK=log_prob_BK,
        limit_B=max_length,
        ended_B=torch.zeros(batch, dtype=torch.long, device=device),
        best_B=torch.full((batch,), float("-inf"), device=device),
        state={name: tensor.repeat_interleave(options.beam_size, dim=0) for name, tensor in state.items()},
        memory=memory,
    )


def _constrain(log_probs_NV: Tensor, beams: _Beams, length: int, options: SearchOptions) -> None:
    """Forbids, in place, some tokens, to repeat, to end below the minimum length, and to go on beyond the maximum."""
    log_probs_NV[:, list(options.never)] = float("-inf")
    if 0 < options.no_repeat <= length:
        _forbid_repetition(log_probs_NV, beams.tokens_BKT[:, :, 1:].flatten(0, 1), options.no_repeat)
    at_limit_B1 = (beams.limit_B <= length).unsqueeze(1)
    if length < options.min_length:
        end_BK = log_probs_NV[:, options.end].view_as(beams.log_prob_BK)
        end_BK.masked_fill_(~at_limit_B1, float("-inf"))
    log_probs_BKV = log_probs_NV.view(*beams.log_prob_BK.shape, -1)
    forbidden_BV = at_limit_B1.expand(-1, log_probs_NV.shape[1]).clone()
    forbidden_BV[:, options.end] = False
    log_probs_BKV.masked_fill_(forbidden_BV.unsqueeze(1), float("-inf"))


def _forbid_repetition(log_probs_NV: Tensor, tokens_NT: Tensor, n: int) -> None:
    """Forbids, in place, every token that has followed the last n - 1 tokens of its hypothesis before."""
    windows_NWn = tokens_NT.unfold(1, n, 1)
    again_NW = (windows_NWn[:, :, :-1] == tokens_NT[:, None, tokens_NT.shape[1] - n + 1 :]).all(dim=2)
    forbidden_NV = torch.zeros_like(log_probs_NV, dtype=torch.bool)
    row_N1 = torch.arange(len(tokens_NT), device=tokens_NT.device).unsqueeze(1).expand_as(again_NW)
    forbidden_NV[row_N1[again_NW], windows_NWn[:, :, -1][again_NW]] = True
    log_probs_NV.masked_fill_(forbidden_NV, float("-inf"))


def _advance(beams: _Beams, log_probs_NV: Tensor, length: int, options: SearchOptions, found: list[Hypothesis]) -> None:
    """Extends the beams by one token, in place; hypotheses that end are scored and the best goes to `found`."""
    beam, vocabulary = options.beam_size, log_probs_NV.shape[1]
    total_BKV = beams.log_prob_BK.unsqueeze(2) + log_probs_NV.view(-1, beam, vocabulary)
    # at most K of the best 2K can end, so K to go on with remain
    total_BC, choice_BC = total_BKV.flatten(1).topk(min(2 * beam, beam * vocabulary), dim=1)
    parent_BC, token_BC = choice_BC // vocabulary, choice_BC % vocabulary
    ends_BC = token_BC == options.end
    _collect(beams, total_BC[:, :beam], parent_BC[:, :beam], ends_BC[:, :beam], length, options, found)

    total_BC = total_BC.masked_fill(ends_BC, float("-inf"))
    beams.log_prob_BK, order_BK = total_BC.sort(dim=1, descending=True, stable=True)
    beams.log_prob_BK, order_BK = beams.log_prob_BK[:, :beam], order_BK[:, :beam]
    parent_BK, token_BK = parent_BC.gather(1, order_BK), token_BC.gather(1, order_BK)
    prefix_BKT = beams.tokens_BKT.gather(1, parent_BK.unsqueeze(2).expand(-1, -1, beams.tokens_BKT.shape[2]))
    beams.tokens_BKT = torch.cat([prefix_BKT, token_BK.unsqueeze(2)], dim=2)
    first_line_B1 = torch.arange(len(parent_BK), device=parent_BK.device).unsqueeze(1) * beam
    beams.state = _index(beams.state, (first_line_B1 + parent_BK).flatten())


def _collect(
    beams: _Beams,
    total_BK: Tensor,
    parent_BK: Tensor,
    ends_BK: Tensor,
    length: int,
    options: SearchOptions,
    found: list[Hypothesis],
) -> None:
    """Counts the hypotheses that end now and remembers the best of each source."""
    ends_BK = ends_BK & total_BK.isfinite()
    beams.ended_B += ends_BK.sum(dim=1)
    score_BK = (total_BK / length_penalty(length + 1, options.length_penalty)).masked_fill(~ends_BK, float("-inf"))
    score_B, k_B = score_BK.max(dim=1)
    improved = (score_B > beams.best_B).nonzero().squeeze(1)
    if len(improved) == 0:
        return
    beams.best_B[improved] = score_B[improved]
    best_parent = parent_BK[improved, k_B[improved]]
    tokens = beams.tokens_BKT[improved, best_parent, 1:].tolist()
    for source, words, score in zip(beams.source_B[improved].tolist(), tokens, score_B[improved].tolist(), strict=True):
        found[source] = Hypothesis(words, score)


def _undone(beams: _Beams, options: SearchOptions) -> Tensor:
    """bool [b]: whether a live hypothesis may still win. Log probabilities only fall, and penalties only grow."""
    reachable_B = beams.log_prob_BK.amax(dim=1) / length_penalty(beams.limit_B + 1, options.length_penalty)
    return (beams.ended_B < options.beam_size) & (reachable_B > beams.best_B)


def _index(state: State, rows: Tensor) -> State:
    return {name: tensor.index_select(0, rows) for name, tensor in state.items()}
