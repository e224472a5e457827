"""Greedy and beam search over any word decoder: one step function, batched over sources, finished sources leave.

Scores follow Wu et al. 2016 ("Google's neural machine translation system", eq. 14) without the coverage term. What is
found stays on the device to the end: on a GPU, only every `LOOK_EVERY`-th step is waited for, and once what was found.
"""

# ruff: noqa: N803, N806, N815 - shape suffixes, see contract.py

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybrid_models.search.options import SearchOptions, known_limits

BLOCK = 64
"""Words of a vocabulary of which the best is found first."""
LOOK_EVERY = 8
"""Steps between looks at which sources are done, on devices that have to be waited for."""
CROWDED = 7 / 8
"""Sources that are done leave when no more than this share of the batch is not: to leave is a copy of the others."""

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


def look_every(device: torch.device) -> int:
    """Steps between looks at what is done."""
    return 1 if device.type == "cpu" else LOOK_EVERY


@dataclass
class _Beams:
    """The hypotheses of the sources in the batch; B counts those that have not left it."""

    source_B: Tensor
    """Index of each source in the batch as it came."""
    tokens_BKT: Tensor
    log_prob_BK: Tensor
    """-inf where there is no hypothesis."""
    limit_B: Tensor
    """Most tokens before the end symbol."""
    ended_B: Tensor
    """How many hypotheses have ended."""
    done_B: Tensor
    """bool: nothing that is found from here on counts."""
    best: _Best
    state: State
    memory: State

    def keep(self, rows: Tensor) -> _Beams:
        """The beams of some sources."""
        beam = self.log_prob_BK.shape[1]
        lines = (rows.unsqueeze(1) * beam + torch.arange(beam, device=rows.device)).flatten()
        return _Beams(
            self.source_B[rows],
            self.tokens_BKT[rows],
            self.log_prob_BK[rows],
            self.limit_B[rows],
            self.ended_B[rows],
            self.done_B[rows],
            self.best.of(rows),
            state=_index(self.state, lines),
            memory=_index(self.memory, rows),
        )


@dataclass
class _Best:
    """The best ended hypothesis of each source."""

    score_B: Tensor
    """-inf before the first."""
    length_B: Tensor
    tokens_BL: Tensor

    def of(self, rows: Tensor) -> _Best:
        return _Best(self.score_B[rows], self.length_B[rows], self.tokens_BL[rows])

    def put(self, rows: Tensor, found: _Best) -> None:
        """Writes what was found of some sources, in place."""
        self.score_B[rows], self.length_B[rows], self.tokens_BL[rows] = found.score_B, found.length_B, found.tokens_BL

    def hypotheses(self) -> list[Hypothesis]:
        numbers_B1 = self.score_B.double().unsqueeze(1), self.length_B.double().unsqueeze(1)
        # float64 holds tokens and scores exactly: a device is waited for once
        rows = torch.cat([*numbers_B1, self.tokens_BL.double()], dim=1).tolist()
        return [Hypothesis(list(map(int, tokens[: int(length)])), score) for score, length, *tokens in rows]


def search(
    step: Step, state: State, memory: State, max_length: Tensor | Sequence[int], options: SearchOptions
) -> list[Hypothesis]:
    """Finds the best output of each source by beam search; with `beam_size` 1 this is greedy search.

    A hypothesis ends when the end symbol is among its source's `beam_size` best continuations. A source is done when
    `beam_size` hypotheses have ended or no live one can still beat the best that has; it leaves the batch with others.
    A source at its `max_length` may only end. The search draws no random numbers.

    Args:
        step: the model; see `Step`.
        state: initial state of each source, leading axis B.
        memory: what does not change from step to step, leading axis B.
        max_length: most tokens of each output, without the end symbol: B numbers, or int64 [B], whose device is waited
            for.
        options: see `SearchOptions`.

    Returns:
        One hypothesis per source, in order.
    """
    limits = known_limits(max_length)
    if not limits:
        return []
    beams = _start(state, memory, limits, options)
    found = beams.best
    every = look_every(beams.limit_B.device)
    for length in range(max(limits) + 1):
        log_probs_NV, beams.state = step(beams.tokens_BKT[:, :, -1].flatten(), beams.state, beams.memory)
        _constrain(log_probs_NV, beams, length, length >= min(limits), options)
        _advance(beams, log_probs_NV, length, options)
        if (length + 1) % every or length == max(limits):
            continue
        rows = (~beams.done_B).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        if len(rows) <= CROWDED * len(beams.source_B):
            found.put(beams.source_B, beams.best)
            beams = beams.keep(rows)
    found.put(beams.source_B, beams.best)
    return found.hypotheses()


def _start(state: State, memory: State, limits: Sequence[int], options: SearchOptions) -> _Beams:
    batch, device = len(limits), next(iter(state.values())).device
    log_prob_BK = torch.full((batch, options.beam_size), float("-inf"), device=device)
    log_prob_BK[:, 0] = 0.0  # one empty hypothesis, or all K would be the same
    nothing_B = torch.zeros(batch, dtype=torch.long, device=device)
    nowhere_B = torch.full((batch,), float("-inf"), device=device)
    return _Beams(
        source_B=torch.arange(batch, device=device),
        tokens_BKT=torch.full((batch, options.beam_size, 1), options.start, device=device),
        log_prob_BK=log_prob_BK,
        limit_B=torch.tensor(limits).to(device, non_blocking=True),
        ended_B=nothing_B,
        done_B=torch.zeros(batch, dtype=torch.bool, device=device),
        best=_Best(nowhere_B, nothing_B.clone(), nothing_B.new_zeros(batch, max(0, *limits))),
        state={name: tensor.repeat_interleave(options.beam_size, dim=0) for name, tensor in state.items()},
        memory=memory,
    )


def _constrain(log_probs_NV: Tensor, beams: _Beams, length: int, limited: bool, options: SearchOptions) -> None:
    """Forbids, in place, some tokens, to repeat, to end below the minimum length, and to go on beyond the maximum, at
    which a source may be where `limited`."""
    for token in options.never:
        log_probs_NV[:, token] = float("-inf")
    if 0 < options.no_repeat <= length:
        _forbid_repetition(log_probs_NV, beams.tokens_BKT[:, :, 1:].flatten(0, 1), options.no_repeat)
    at_limit_B1 = (beams.limit_B <= length).unsqueeze(1)
    end_BK = log_probs_NV[:, options.end].view_as(beams.log_prob_BK)
    if length < options.min_length:
        end_BK.masked_fill_(~at_limit_B1, float("-inf"))
    if limited:
        ends_BK = end_BK.clone()
        log_probs_NV.view(*ends_BK.shape, -1).masked_fill_(at_limit_B1.unsqueeze(2), float("-inf"))
        end_BK.copy_(ends_BK)


def _forbid_repetition(log_probs_NV: Tensor, tokens_NT: Tensor, n: int) -> None:
    """Forbids, in place, every token that has followed the last n - 1 tokens of its hypothesis before."""
    windows_NWn = tokens_NT.unfold(1, n, 1)
    again_NW = (windows_NWn[:, :, :-1] == tokens_NT[:, None, tokens_NT.shape[1] - n + 1 :]).all(dim=2)
    penalty_NW = torch.zeros_like(again_NW, dtype=log_probs_NV.dtype).masked_fill_(again_NW, float("-inf"))
    log_probs_NV.scatter_add_(1, windows_NWn[:, :, -1], penalty_NW)


def _advance(beams: _Beams, log_probs_NV: Tensor, length: int, options: SearchOptions) -> None:
    """Extends the beams by one token, in place, and notes the best hypothesis that ends."""
    beam, vocabulary = options.beam_size, log_probs_NV.shape[1]
    # at most K of the best 2K can end, so K to go on with remain
    total_BC, choice_BC = _continuations(beams.log_prob_BK, log_probs_NV, min(2 * beam, beam * vocabulary))
    parent_BC, token_BC = choice_BC // vocabulary, choice_BC % vocabulary
    ends_BC = token_BC == options.end
    _collect(beams, total_BC[:, :beam], parent_BC[:, :beam], ends_BC[:, :beam], length, options)

    total_BC = total_BC.masked_fill(ends_BC, float("-inf"))
    beams.log_prob_BK, order_BK = total_BC.sort(dim=1, descending=True, stable=True)
    beams.log_prob_BK, order_BK = beams.log_prob_BK[:, :beam], order_BK[:, :beam]
    parent_BK, token_BK = parent_BC.gather(1, order_BK), token_BC.gather(1, order_BK)
    prefix_BKT = beams.tokens_BKT.gather(1, parent_BK.unsqueeze(2).expand(-1, -1, beams.tokens_BKT.shape[2]))
    beams.tokens_BKT = torch.cat([prefix_BKT, token_BK.unsqueeze(2)], dim=2)
    first_line_B1 = torch.arange(len(parent_BK), device=parent_BK.device).unsqueeze(1) * beam
    beams.state = _index(beams.state, (first_line_B1 + parent_BK).flatten())
    beams.done_B = beams.done_B | ~_undone(beams, options)


def _continuations(log_prob_BK: Tensor, log_probs_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log probabilities [B,C] of each source's best continuations, falling, and which they are: k·V + token.

    A vocabulary is looked at in blocks: the best C words are in the C blocks whose best words are the best. To find
    these takes one pass at the speed of memory, which choosing among all words takes several times.
    """
    vocabulary = log_probs_NV.shape[1]
    if vocabulary < 2 * BLOCK or log_prob_BK.shape[1] * (vocabulary // BLOCK) < count:
        return (log_prob_BK.unsqueeze(2) + log_probs_NV.view(*log_prob_BK.shape, -1)).flatten(1).topk(count, dim=1)
    whole = vocabulary // BLOCK * BLOCK
    best_NM = log_probs_NV[:, :whole].unflatten(1, (-1, BLOCK)).amax(dim=2)
    if whole < vocabulary:
        best_NM = torch.cat([best_NM, log_probs_NV[:, whole:].amax(dim=1, keepdim=True)], dim=1)
    best_BKM = log_prob_BK.unsqueeze(2) + best_NM.view(*log_prob_BK.shape, -1)
    block_BC = best_BKM.flatten(1).topk(count, dim=1).indices
    parent_BC1 = (block_BC // best_NM.shape[1]).unsqueeze(2)
    token_BCW = (block_BC % best_NM.shape[1]).unsqueeze(2) * BLOCK + torch.arange(BLOCK, device=block_BC.device)
    choice_BCW = parent_BC1 * vocabulary + token_BCW.clamp(max=vocabulary - 1)
    words_BCW = log_probs_NV.view(len(log_prob_BK), -1).gather(1, choice_BCW.flatten(1)).view_as(choice_BCW)
    total_BCW = log_prob_BK.gather(1, parent_BC1.squeeze(2)).unsqueeze(2) + words_BCW
    total_BCW.masked_fill_(token_BCW >= vocabulary, float("-inf"))
    total_BC, place_BC = total_BCW.flatten(1).topk(count, dim=1)
    return total_BC, choice_BCW.flatten(1).gather(1, place_BC)


def _collect(
    beams: _Beams, total_BK: Tensor, parent_BK: Tensor, ends_BK: Tensor, length: int, options: SearchOptions
) -> None:
    """Counts the hypotheses that end now and remembers the best of each source."""
    ends_BK = ends_BK & total_BK.isfinite()
    beams.ended_B = beams.ended_B + ends_BK.sum(dim=1)
    score_BK = (total_BK / length_penalty(length + 1, options.length_penalty)).masked_fill(~ends_BK, float("-inf"))
    score_B, k_B = score_BK.max(dim=1)
    best = beams.best
    better_B = (score_B > best.score_B) & ~beams.done_B
    parent_B11 = parent_BK.gather(1, k_B.unsqueeze(1)).unsqueeze(2)
    tokens_BT = beams.tokens_BKT[:, :, 1:].gather(1, parent_B11.expand(-1, -1, length)).squeeze(1)
    kept_BT = torch.where(better_B.unsqueeze(1), tokens_BT, best.tokens_BL[:, :length])
    beams.best = _Best(
        torch.where(better_B, score_B, best.score_B),
        torch.where(better_B, length, best.length_B),
        torch.cat([kept_BT, best.tokens_BL[:, length:]], dim=1),
    )


def _undone(beams: _Beams, options: SearchOptions) -> Tensor:
    """bool [b]: whether a live hypothesis may still win. Log probabilities only fall, and penalties only grow."""
    reachable_B = beams.log_prob_BK.amax(dim=1) / length_penalty(beams.limit_B + 1, options.length_penalty)
    return (beams.ended_B < options.beam_size) & (reachable_B > beams.best.score_B)


def _index(state: State, rows: Tensor) -> State:
    return {name: tensor.index_select(0, rows) for name, tensor in state.items()}
