"""Greedy and beam search over any word decoder: one step function, batched over sources, finished sources leave.

Scores follow Wu et al. 2016 ("Google's neural machine translation system", eq. 14) without the coverage term. A device
that has to be waited for is looked at every `LOOK_EVERY`-th step, for all that was found so far, and computes in few
shapes: see `shapes.bucket`.
"""

# ruff: noqa: N803, N806, N815 - shape suffixes, see contract.py

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from hybrid_models import shapes
from hybrid_models.search.options import SearchOptions

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


def length_penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6)^alpha, by which log probabilities are divided (Wu et al. 2016, eq. 14)."""
    return float(((5 + length) / 6) ** alpha)


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
    return LOOK_EVERY if shapes.has_shapes(device) else 1


class _Beams(NamedTuple):
    """The hypotheses of the B sources in the batch; L is as long as any of them can get, its start symbol included."""

    tokens_BKL: Tensor
    """int64; from the position on that a search has come to, they mean nothing."""
    log_prob_BK: Tensor
    """-inf where there is no hypothesis."""
    limit_B: Tensor
    """Most tokens before the end symbol."""
    penalty_L: Tensor
    """`length_penalty` of so many tokens, the end symbol included."""
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
            self.tokens_BKL.index_select(0, rows),
            self.log_prob_BK.index_select(0, rows),
            self.limit_B.index_select(0, rows),
            self.penalty_L,
            self.ended_B.index_select(0, rows),
            self.done_B.index_select(0, rows),
            best=_Best(*(tensor.index_select(0, rows) for tensor in self.best)),
            state=_index(self.state, lines),
            memory=_index(self.memory, rows),
        )

    def read(self) -> np.ndarray:
        """What the host wants to know of each source, in one copy: float64 [B,3+L], which holds all of it exactly;
        whether it is done, its best score, length and tokens."""
        numbers = [tensor.double().unsqueeze(1) for tensor in (self.done_B, self.best.score_B, self.best.length_B)]
        table: np.ndarray = torch.cat([*numbers, self.best.tokens_BL.double()], dim=1).cpu().numpy()
        return table


class _Best(NamedTuple):
    """The best ended hypothesis of each source."""

    score_B: Tensor
    """-inf before the first."""
    length_B: Tensor
    tokens_BL: Tensor
    """Its start symbol is not among them."""


def search(
    step: Step, state: State, memory: State, max_length: Sequence[int], options: SearchOptions
) -> list[Hypothesis]:
    """Finds the best output of each source, in order, by beam search; with `beam_size` 1 this is greedy search.

    A hypothesis ends when the end symbol is among its source's `beam_size` best continuations. A source is done when
    no live one can still beat the best that has ended; or, when `beam_size` of them have, as soon as none is likelier
    than it as it stands (a long text of a net that is sure of it comes after short ones that are wrong). It leaves the
    batch with others.
    A source at its `max_length` may only end. The search draws no random numbers.

    Args:
        step: the model; see `Step`.
        state: initial state of each source, leading axis B.
        memory: what does not change from step to step, leading axis B.
        max_length: most tokens of each of B outputs, without the end symbol.
        options: see `SearchOptions`.
    """
    if not max_length:
        return []
    found: dict[int, Hypothesis] = {}
    beams = _start(state, memory, max_length, options)
    device, last = beams.limit_B.device, max(max_length)
    every = look_every(device)
    inside = np.arange(len(max_length))  # the sources of the first rows; others only fill up
    position = torch.zeros((), dtype=torch.long, device=device)
    for length in range(last + 1):
        beams, position = _turn(step, beams, position, options)
        left = last - length
        if left and ((length + 1) % every or left <= every // 4):  # so few that they take less than a look
            continue
        table = beams.read()
        done = table[: len(inside), 0] != 0
        if not left or done.all():
            done[:] = True
        going = np.flatnonzero(~done)
        stay = shapes.bucket(len(going)) if shapes.has_shapes(device) else len(going)
        if stay > CROWDED * len(table):
            continue
        found.update(zip(inside[done].tolist(), map(_hypothesis, table[: len(inside)][done]), strict=True))
        if len(going) == 0:
            break
        inside = inside[going]
        beams = beams.keep(torch.from_numpy(np.resize(going, stay)).to(device, non_blocking=True))
    return [found[i] for i in range(len(max_length))]


def _hypothesis(row: np.ndarray) -> Hypothesis:
    """A row of `_Beams.read`."""
    _, score, length, *tokens = row.tolist()
    return Hypothesis(list(map(int, tokens[: int(length)])), score)


def _start(state: State, memory: State, limits: Sequence[int], options: SearchOptions) -> _Beams:
    device, count = next(iter(state.values())).device, len(limits)
    longest = shapes.width_on(device, max(limits) + 2)
    if shapes.has_shapes(device) and shapes.bucket(count) > count:
        rows = np.resize(np.arange(count), shapes.bucket(count))
        limits = np.asarray(limits)[rows].tolist()
        state, memory = (_index(part, torch.from_numpy(rows).to(device, non_blocking=True)) for part in (state, memory))
        count = len(rows)
    log_prob_BK = torch.full((count, options.beam_size), float("-inf"), device=device)
    log_prob_BK[:, 0] = 0.0  # one empty hypothesis, or all K would be the same
    nothing_B = torch.zeros(count, dtype=torch.long, device=device)
    nowhere_B = torch.full((count,), float("-inf"), device=device)
    return _Beams(
        tokens_BKL=torch.full((count, options.beam_size, longest), options.start, device=device),
        log_prob_BK=log_prob_BK,
        limit_B=torch.tensor(limits).to(device, non_blocking=True),
        penalty_L=torch.tensor([length_penalty(n, options.length_penalty) for n in range(longest)]).to(
            device, non_blocking=True
        ),
        ended_B=nothing_B,
        done_B=torch.zeros(count, dtype=torch.bool, device=device),
        best=_Best(nowhere_B, nothing_B.clone(), nothing_B.new_zeros(count, longest - 1)),
        state={name: tensor.repeat_interleave(options.beam_size, dim=0) for name, tensor in state.items()},
        memory=memory,
    )


def _turn(step: Step, beams: _Beams, position: Tensor, options: SearchOptions) -> tuple[_Beams, Tensor]:
    """Extends the hypotheses by the token after a position (a scalar), and notes the best that end there. In as few
    shapes as there are sizes of a batch, and without waiting for the device, so that it can be compiled or captured."""
    tokens_BK1 = beams.tokens_BKL.index_select(2, position.unsqueeze(0))
    log_probs_NV, state = step(tokens_BK1.flatten(), beams.state, beams.memory)
    at_limit_B = beams.limit_B <= position
    _constrain(log_probs_NV, beams, position, at_limit_B, options)
    return _advance(beams._replace(state=state), log_probs_NV, position, at_limit_B, options), position + 1


def _constrain(
    log_probs_NV: Tensor, beams: _Beams, position: Tensor, at_limit_B: Tensor, options: SearchOptions
) -> None:
    """Forbids, in place, some tokens, to repeat, and to end below the minimum length."""
    for token in options.never:
        log_probs_NV[:, token] = float("-inf")
    if 0 < options.no_repeat < beams.tokens_BKL.shape[2]:  # or there is no room for it twice
        _forbid_repetition(log_probs_NV, beams.tokens_BKL.flatten(0, 1), position, options.no_repeat)
    if options.min_length:
        too_short_B1 = ((position < options.min_length) & ~at_limit_B).unsqueeze(1)
        log_probs_NV[:, options.end].view_as(beams.log_prob_BK).masked_fill_(too_short_B1, float("-inf"))


def _forbid_repetition(log_probs_NV: Tensor, tokens_NL: Tensor, position: Tensor, n: int) -> None:
    """Forbids, in place, every token that has followed the last n - 1 tokens of its hypothesis before."""
    windows_NWn = tokens_NL[:, 1:].unfold(1, n, 1)
    last_P = torch.arange(2 - n, 1, device=position.device) + position
    again_NW = (windows_NWn[:, :, :-1] == tokens_NL.index_select(1, last_P.clamp(min=0)).unsqueeze(1)).all(dim=2)
    written_W = torch.arange(windows_NWn.shape[1], device=position.device) <= position - n
    penalty_NW = torch.zeros_like(again_NW, dtype=log_probs_NV.dtype).masked_fill_(again_NW & written_W, float("-inf"))
    log_probs_NV.scatter_add_(1, windows_NWn[:, :, -1], penalty_NW)


def _advance(
    beams: _Beams, log_probs_NV: Tensor, position: Tensor, at_limit_B: Tensor, options: SearchOptions
) -> _Beams:
    """Extends the beams by one token and notes the best hypothesis that ends."""
    beam, vocabulary = options.beam_size, log_probs_NV.shape[1]
    place_K, place_L = (torch.arange(size, device=position.device) for size in beams.tokens_BKL.shape[1:])
    # at most K of the best 2K can end, so K to go on with remain
    total_BC, choice_BC = _continuations(beams.log_prob_BK, log_probs_NV, min(2 * beam, beam * vocabulary))
    parent_BC, token_BC = choice_BC // vocabulary, choice_BC % vocabulary
    ends_BC = token_BC == options.end
    at_limit_B1 = at_limit_B.unsqueeze(1)
    best, ended_B = _collect(
        beams,
        # at its limit, each hypothesis ends
        torch.where(
            at_limit_B1,
            beams.log_prob_BK + log_probs_NV[:, options.end].view_as(beams.log_prob_BK),
            total_BC[:, :beam].masked_fill(~ends_BC[:, :beam], float("-inf")),
        ),
        torch.where(at_limit_B1, place_K, parent_BC[:, :beam]),
        position,
    )
    log_prob_BC, order_BC = total_BC.masked_fill(ends_BC, float("-inf")).sort(dim=1, descending=True, stable=True)
    log_prob_BK, order_BK = log_prob_BC[:, :beam], order_BC[:, :beam]
    parent_BK, token_BK = parent_BC.gather(1, order_BK), token_BC.gather(1, order_BK)
    prefix_BKL = beams.tokens_BKL.gather(1, parent_BK.unsqueeze(2).expand_as(beams.tokens_BKL))
    first_line_B1 = torch.arange(len(parent_BK), device=position.device).unsqueeze(1) * beam
    # a live hypothesis may still win: log probabilities only fall, and penalties only grow
    likeliest_B = log_prob_BK.amax(dim=1)
    reachable_B = likeliest_B / beams.penalty_L.index_select(0, beams.limit_B + 1)
    likelier_B = likeliest_B > best.score_B * beams.penalty_L.index_select(0, best.length_B + 1)
    going_B = ~at_limit_B & ((ended_B < beam) | likelier_B) & (reachable_B > best.score_B)
    return beams._replace(
        tokens_BKL=torch.where(place_L == position + 1, token_BK.unsqueeze(2), prefix_BKL),
        log_prob_BK=log_prob_BK,
        ended_B=ended_B,
        done_B=beams.done_B | ~going_B,
        best=best,
        state=_index(beams.state, (first_line_B1 + parent_BK).flatten()),
    )


def _collect(beams: _Beams, total_BK: Tensor, parent_BK: Tensor, position: Tensor) -> tuple[_Best, Tensor]:
    """The best hypothesis of each source, and how many have ended, after those that end now; -inf are none."""
    score_BK = total_BK / beams.penalty_L.index_select(0, position.unsqueeze(0) + 1)
    score_B, k_B = score_BK.max(dim=1)
    best = beams.best
    better_B = (score_B > best.score_B) & ~beams.done_B
    parent_B11 = parent_BK.gather(1, k_B.unsqueeze(1)).unsqueeze(2)
    tokens_BL = beams.tokens_BKL[:, :, 1:].gather(1, parent_B11.expand(-1, -1, best.tokens_BL.shape[1])).squeeze(1)
    better = _Best(
        torch.where(better_B, score_B, best.score_B),
        torch.where(better_B, position, best.length_B),
        torch.where(better_B.unsqueeze(1), tokens_BL, best.tokens_BL),
    )
    return better, beams.ended_B + total_BK.isfinite().sum(dim=1)


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


def in_places(memory: State) -> State:
    """A memory with leading axes B and S, where shapes count with more places, which are 0 and masked."""
    places = next(iter(memory.values())).shape[1]
    more = shapes.width_on(memory["mask"].device, places) - places
    if more == 0:
        return memory
    return {name: F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, more)) for name, tensor in memory.items()}


def _index(state: State, rows: Tensor) -> State:
    return {name: tensor.index_select(0, rows) for name, tensor in state.items()}
