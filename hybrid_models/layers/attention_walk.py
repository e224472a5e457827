"""A whole text's steps with attention as one function with gradients: what training unrolls.

Autograd would keep some forty small results a step, and add up the gradients of what all steps share step by step. Here
a step keeps its state and where it met the keys, and such gradients are one product each, after the last step. Nothing
waits for the device, and a compiler takes in the whole of it, there and back.
"""

# ruff: noqa: N803, N806 - shape suffixes, see contract.py

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid_models.layers.attention import half_tanh, masked_softmax
from hybrid_models.layers.recurrent import kept_step, step_back
from hybrid_models.search.beam import State


def attention_walk(
    words: Tensor,
    state: State,
    values: Tensor,
    projected_keys: Tensor,
    mask: Tensor,
    hidden_gates: tuple[Tensor, Tensor],
    query: Tensor,
    energy: Tensor,
) -> tuple[Tensor, Tensor]:
    """h_t = cell(words_t + Σ_s weights_{t-1,s} values_s, h_{t-1}),  weights_t = attention(h_t), of N = B·R texts.

    Args:
        words: [N,T,G], the share of each word in the gates; rows of a source side by side.
        state: of a cell, float32 [N,D] each.
        values: [B,S,G], the share of each place in the gates. The first step has looked nowhere.
        projected_keys: [B,S,A], see `AdditiveAttention`.
        mask: bool [B,S], True where a place is valid.
        hidden_gates: matrix [G,D] and bias [G].
        query: matrix [A,D] of a query.
        energy: [A], what a meeting of query and key is worth.

    Returns:
        The hidden states [N,T,D], in the type of `words`, and the weights float32 [N,T,S].
    """
    shared = (t.to(words.dtype) for t in (values, projected_keys, *hidden_gates, query, energy))
    own = words, state["hidden"], state.get("cell"), mask
    found: tuple[Tensor, Tensor] = _Walk.apply(torch.is_grad_enabled(), *own, *shared)  # type: ignore[no-untyped-call]
    return found


class _Walk(torch.autograd.Function):
    """See `attention_walk`. Gradients can be asked for once."""

    @staticmethod
    def forward(
        ctx: Any, recorded: bool, words_NTG: Tensor, hidden_ND: Tensor, cell_ND: Tensor | None, mask_BS: Tensor,
        values_BSG: Tensor, keys_BSA: Tensor, weight_GD: Tensor, bias_G: Tensor, query_AD: Tensor, energy_A: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        (rows, steps, _), (sources, places, size) = words_NTG.shape, keys_BSA.shape
        hidden_NTD = words_NTG.new_empty(rows, steps + 1, hidden_ND.shape[1])
        hidden_NTD[:, 0] = hidden_ND
        weights_NTS = hidden_ND.new_empty(rows, steps, places)
        weights_BRS = hidden_ND.new_zeros(sources, rows // sources, places)
        state = {"hidden": hidden_ND} if cell_ND is None else {"hidden": hidden_ND, "cell": cell_ND}
        cells: list[Tensor] = []
        meetings: list[Tensor] = []
        values_BSG = values_BSG.contiguous()  # or each step would copy it
        with torch.autocast(words_NTG.device.type, enabled=False):
            keys_BSA, energy_A1 = keys_BSA.float(), 2 * energy_A.unsqueeze(1)
            for t in range(steps):
                looked_BRG = torch.bmm(weights_BRS.to(words_NTG.dtype), values_BSG)
                gates = words_NTG[:, t] + looked_BRG.flatten(0, 1), torch.addmm(bias_G, hidden_NTD[:, t], weight_GD.t())
                state, known = kept_step(state, *gates)
                hidden_NTD[:, t + 1] = state["hidden"]
                query_BRA = (hidden_NTD[:, t + 1] @ query_AD.t()).view(sources, -1, size)
                meetings_XA = half_tanh(keys_BSA, query_BRA).to(words_NTG.dtype).view(-1, size)
                energies_BRS = (meetings_XA @ energy_A1).view(sources, -1, places)
                weights_BRS = masked_softmax(energies_BRS, mask_BS.unsqueeze(1))
                weights_NTS[:, t] = weights_BRS.flatten(0, 1)
                if recorded:
                    cells.extend(known)
                    meetings.append(meetings_XA)
        if recorded:
            kept, ctx.states = [*meetings, *cells], len(state)
            # Backward frees what it is done with, of which a compiler knows only what is saved so.
            ctx.kept = None if torch.compiler.is_compiling() else kept
            saved = kept if torch.compiler.is_compiling() else []
            ctx.save_for_backward(hidden_NTD, weights_NTS, values_BSG, weight_GD, query_AD, energy_A, *saved)
        return hidden_NTD[:, 1:], weights_NTS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden_NTD: Tensor, grad_weights_NTS: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NTD, weights_NTS, values_BSG, weight_GD, query_AD, energy_A, *kept = ctx.saved_tensors
        (rows, steps, places), (sources, _, gates), size = weights_NTS.shape, values_BSG.shape, len(energy_A)
        kept, ctx.kept = ctx.kept or kept, None
        if not kept:
            raise RuntimeError("the gradients of a walk can be asked for once")
        meetings, cells = kept[:steps], kept[steps:]
        del kept
        each = len(cells) // steps
        grad_words_NTG = values_BSG.new_empty(rows, steps, gates)
        grad_words_NG = values_BSG.new_zeros(rows, gates)  # of the next step
        grad_gates_NTG = torch.empty_like(grad_words_NTG)
        grad_query_NTA = values_BSG.new_empty(rows, steps, size)
        grad_keys_BSA = energy_A.new_zeros(sources, places, size, dtype=torch.float32)
        grad_energy_A = torch.zeros_like(energy_A, dtype=torch.float32)
        values_BGS = values_BSG.transpose(1, 2).contiguous()
        one = values_BSG.new_ones(())
        grads = [hidden_NTD.new_zeros(rows, hidden_NTD.shape[2], dtype=torch.float32) for _ in range(ctx.states)]
        for t in reversed(range(steps)):
            grad_looked_BRS = torch.bmm(grad_words_NG.view(sources, -1, gates), values_BGS)
            grad_weights_NS, weights_NS = grad_weights_NTS[:, t] + grad_looked_BRS.flatten(0, 1), weights_NTS[:, t]
            expected_N1 = (weights_NS * grad_weights_NS).sum(dim=1, keepdim=True)
            grad_energies_NS = (weights_NS * (grad_weights_NS - expected_N1)).to(energy_A.dtype)
            meetings_NSA = meetings.pop().view(rows, places, size)
            grad_energy_A += 2 * (grad_energies_NS.view(1, -1) @ meetings_NSA.flatten(0, 1))[0]
            torch.addcmul(one, meetings_NSA, meetings_NSA, value=-4, out=meetings_NSA)  # tanh's slope
            grad_query_NA = torch.bmm(grad_energies_NS.unsqueeze(1), meetings_NSA).squeeze(1) * energy_A
            grad_query_NTA[:, t] = grad_query_NA
            meetings_NSA *= grad_energies_NS.unsqueeze(2)
            for row_BSA in meetings_NSA.view(sources, -1, places, size).unbind(1):
                grad_keys_BSA += row_BSA
            grads[0] = grads[0] + grad_hidden_NTD[:, t] + grad_query_NA @ query_AD
            *halves, grads = step_back(cells[-each:], grads)
            del cells[-each:]
            grad_words_NG, grad_gates_NG = (half.to(energy_A.dtype) for half in halves)
            grad_words_NTG[:, t], grad_gates_NTG[:, t] = grad_words_NG, grad_gates_NG
            grads[0] = grads[0] + grad_gates_NG @ weight_GD
        # What all steps share: rows of all steps side by side.
        looked_BSM = weights_NTS.to(values_BSG.dtype).view(sources, -1, places).transpose(1, 2)
        next_NTG = torch.nn.functional.pad(grad_words_NTG[:, 1:], (0, 0, 0, 1))
        grad_values_BSG = torch.bmm(looked_BSM, next_NTG.view(sources, -1, gates))
        grad_weight_GD = grad_gates_NTG.flatten(0, 1).t() @ hidden_NTD[:, :-1].flatten(0, 1)
        grad_query_AD = grad_query_NTA.flatten(0, 1).t() @ hidden_NTD[:, 1:].flatten(0, 1)
        grad_bias_G = grad_gates_NTG.sum(dim=(0, 1), dtype=torch.float32)
        initial = grads if len(grads) == 2 else [*grads, None]
        shared = (
            grad_values_BSG, grad_keys_BSA * energy_A, grad_weight_GD, grad_bias_G, grad_query_AD, grad_energy_A,
        )  # fmt: skip
        return None, grad_words_NTG, *initial, None, *(t.to(energy_A.dtype) for t in shared)
