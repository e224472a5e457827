"""Additive attention (Bahdanau, Cho, Bengio 2015, "Neural machine translation by jointly learning to align and
translate")."""

# ruff: noqa: N806 - shape suffixes, see contract.py

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdditiveAttention(nn.Module):
    """Scores every key against a query by a small feed-forward net and averages the keys by their scores.

    energy_s = v · tanh(W query + U key_s + b),  weights = softmax over valid s,  context = Σ_s weights_s key_s
    (Bahdanau et al. 2015, §3.1 and appendix A.1.2).

    Args:
        query_dim: size Q of a query.
        key_dim: size K of a key, which is also the size of the context.
        attention_dim: size A of the space in which queries and keys meet.
    """

    def __init__(self, query_dim: int, key_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_dim, attention_dim, bias=False)
        self.key = nn.Linear(key_dim, attention_dim)
        self.energy = nn.Linear(attention_dim, 1, bias=False)

    def project_keys(self, keys: Tensor) -> Tensor:
        """`U key + b` [B,S,A] of keys [B,S,K]: the same for every query, so compute it once per source."""
        projected: Tensor = self.key(keys)
        return projected

    def weights(self, query: Tensor, mask: Tensor, projected_keys: Tensor) -> Tensor:
        """Attention weights [B,R,S] of queries [B,R,Q]; the other arguments are `forward`'s."""
        query_BRA = self.query(query)
        if torch.is_grad_enabled():
            meeting_BRSA = torch.tanh(projected_keys.unsqueeze(1) + query_BRA.unsqueeze(2))
            energies_BRS = self.energy(meeting_BRSA).squeeze(-1)
        else:
            energies_BRS = self.energy(half_tanh(projected_keys, query_BRA).to(query_BRA.dtype)).squeeze(-1) * 2
        return masked_softmax(energies_BRS, mask.unsqueeze(1))

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor, projected_keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attends from one query per source, or from several (beams, captions of one image) at no copy of the keys.

        Args:
            query: [B,Q], or [B,R,Q] for R queries of each source.
            keys: [B,S,K].
            mask: bool [B,S], True where a key is valid, False on padding.
            projected_keys: `project_keys(keys)`, if already known.

        Returns:
            context [B,K] (or [B,R,K]) and weights [B,S] (or [B,R,S]). Weights are exactly 0 on padding and sum to 1;
            in a row without any valid key both weights and context are 0.
        """
        if query.dim() == 2:
            context_B1K, weights_B1S = self(query.unsqueeze(1), keys, mask, projected_keys)
            return context_B1K.squeeze(1), weights_B1S.squeeze(1)
        weights_BRS = self.weights(query, mask, self.project_keys(keys) if projected_keys is None else projected_keys)
        return torch.bmm(weights_BRS.to(keys.dtype), keys), weights_BRS


def half_tanh(keys: Tensor, query: Tensor) -> Tensor:
    """tanh(key_s + query_r) / 2, float32 [B,R,S,A], of keys [B,S,A] and queries [B,R,A]; without gradients.

    On CPUs torch's tanh takes about ten times as long as its logistic function σ, and tanh(x) / 2 = σ(2 x) - 1/2; on
    GPUs each pass over so many numbers counts.
    """
    if keys.device.type != "cpu":
        return (keys.float().unsqueeze(1) + query.float().unsqueeze(2)).tanh_().mul_(0.5)
    sums_BRSA = (2 * keys.float()).unsqueeze(1) + (2 * query.float()).unsqueeze(2)
    return sums_BRSA.sigmoid_().sub_(0.5)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """float32 softmax over the last axis, of positions where `mask` (bool, broadcastable) is True; 0 elsewhere.

    The lowest finite number instead of -inf keeps rows without a valid position, and their gradients, free of NaN.
    """
    scores = scores.float()
    weights = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1)
    return weights.masked_fill(~mask, 0.0)
