"""An optimizer: Muon for matrices, AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybrid_models.contract import autocast

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's polynomial: it takes singular values from 0 … 1 to about 1 in few steps."""
ITERATIONS = 5
NOTHING = 1e-7
"""A direction shorter than this is what is left of gradients that have ended: its step is shorter, too."""
ADAM_RMS = 0.2
"""Of a step of AdamW, by its rate, as measured by Liu et al.: matrices are stepped as far, with the same rate."""


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """The weights that learn and by which hidden values are multiplied: matrices and kernels, but no embeddings, of
    which a step sees few rows."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.ndim > 1 and id(p) not in embeddings]


class Muon(torch.optim.AdamW):
    """AdamW, but the step of a matrix is its gradients' moving mean made orthogonal, all of whose directions count
    alike, also those that gradients rarely take (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/):

        M ← μ M + (1 - μ) G,   W ← (1 - η λ) W - η · 0.2 √max(m, n) · orthogonal((1 - μ) G + μ M)

    for W, G `[m, n]`; of a kernel all axes but the first are one. With 0.2 √max(m, n), a step is as long as AdamW's
    (Liu et al. 2025, arXiv:2502.16982), so that both have one rate η.

    Args:
        matrices: weights of two axes or more.
        others: what AdamW steps.
        rate: η.
        decay: λ, decoupled, for all.
    """

    def __init__(
        self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter], rate: float, decay: float
    ) -> None:
        groups = [{"params": list(group)} for group in (others, matrices)]
        super().__init__(groups, lr=rate, weight_decay=decay, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # gradients are there: no closure
        """One step; gradients of matrices are gone afterwards. Where `found_inf`, which a scaler or the loop sets, is
        not 0, nothing changes, and nobody waits to know it."""
        found = getattr(self, "found_inf", None)
        group = self.param_groups[1]
        for weight in group["params"]:
            if weight.grad is not None:
                self._step_matrix(weight, weight.grad, group["lr"], group["weight_decay"], found)
                weight.grad = None  # so AdamW leaves it alone
        super().step(closure)

    def _step_matrix(self, weight: Tensor, grad: Tensor, rate: float, decay: float, found: Tensor | None) -> None:
        # Names, and the count of steps, as AdamW has them, which looks at all states that it loads.
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
        mean, bad = state["exp_avg"], 0.0 if found is None else found
        grad = grad if found is None else torch.where(found > 0, mean, grad)  # which keeps the mean
        state["step"] += 1 - bad
        mean.lerp_(grad, 1 - MOMENTUM)
        direction = orthogonal(grad.lerp(mean, MOMENTUM).flatten(1))
        length = ADAM_RMS * math.sqrt(max(direction.shape)) * (1 - bad)
        weight.sub_(rate * (direction.view_as(weight) * length + weight * (decay * (1 - bad))))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U Vᵀ of a matrix U S Vᵀ `[m, n]`, singular values 0.5 … 1.5 for 1, by iterations that only multiply
    (Newton-Schulz), in numbers of two bytes where these are fast."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found: Tensor = wide / wide.norm().clamp(min=NOTHING)  # no singular value above 1
    a, b, c = QUINTIC
    with autocast(matrix.device):
        for _ in range(ITERATIONS):
            squares = found @ found.T
            found = a * found + (b * squares + c * squares @ squares) @ found
    return (found if wide is matrix else found.T).to(matrix.dtype)
