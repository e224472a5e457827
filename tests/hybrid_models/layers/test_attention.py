"""Additive attention against its equations, written out."""

import pytest
import torch

from hybrid_models.layers.attention import AdditiveAttention, half_tanh, masked_softmax

B, S, Q, K, A = 3, 5, 4, 6, 7


@pytest.fixture
def case():
    torch.manual_seed(0)
    attention = AdditiveAttention(Q, K, A).double()
    query, keys = torch.randn(B, Q, dtype=torch.double), torch.randn(B, S, K, dtype=torch.double)
    mask = torch.arange(S) < torch.tensor([[5], [3], [1]])
    return attention, query, keys, mask


def test_equals_the_equations_of_bahdanau(case):
    attention, query, keys, mask = case
    context, weights = attention(query, keys, mask)
    for b in range(B):
        valid = int(mask[b].sum())
        energies = torch.stack(
            [
                attention.energy.weight[0]
                @ torch.tanh(attention.query.weight @ query[b] + attention.key.weight @ keys[b, s] + attention.key.bias)
                for s in range(valid)
            ]
        )
        expected = energies.exp() / energies.exp().sum()
        torch.testing.assert_close(weights[b, :valid].double(), expected, atol=1e-6, rtol=1e-5)
        expected_context = sum(expected[s] * keys[b, s] for s in range(valid))
        torch.testing.assert_close(context[b], expected_context, atol=1e-6, rtol=1e-5)


def test_weights_are_a_distribution_over_valid_positions_only(case):
    attention, query, keys, mask = case
    _, weights = attention(query, keys, mask)
    assert (weights[~mask] == 0).all()
    assert (weights[mask] > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(B))
    assert weights[2].tolist() == [1, 0, 0, 0, 0]


def test_padding_content_changes_nothing(case):
    attention, query, keys, mask = case
    before = attention(query, keys, mask)
    after = attention(query, keys.masked_fill(~mask.unsqueeze(2), 1e6), mask)
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_fully_masked_row_is_zero_with_finite_gradients(case):
    attention, query, keys, mask = case
    mask = mask.clone()
    mask[1] = False
    query.requires_grad_()
    context, weights = attention(query, keys, mask)
    assert (weights[1] == 0).all()
    assert (context[1] == 0).all()
    context.sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())
    assert (query.grad[1] == 0).all()


def test_projected_keys_and_several_queries_give_the_same(case):
    attention, _, keys, mask = case
    queries = torch.randn(B, 2, Q, dtype=torch.double)
    context, weights = attention(queries, keys, mask, attention.project_keys(keys))
    for r in range(2):
        context_r, weights_r = attention(queries[:, r], keys, mask)
        torch.testing.assert_close(context[:, r], context_r)
        torch.testing.assert_close(weights[:, r], weights_r)


def test_without_gradients_weights_are_the_same():
    attention, query, keys = AdditiveAttention(Q, K, A), torch.randn(B, 2, Q), torch.randn(B, S, K)
    mask = torch.arange(S) < torch.tensor([[5], [3], [1]])
    expected = attention(query, keys, mask)
    with torch.inference_mode():
        torch.testing.assert_close(attention(query, keys, mask), expected, atol=1e-6, rtol=1e-5)


def test_half_of_a_hyperbolic_tangent_is_right_to_rounding():
    keys, query = torch.linspace(-30, 30, 60001).view(1, -1, 1), torch.tensor([[[0.0], [1e-4]]])
    expected = torch.tanh(keys.double().unsqueeze(1) + query.double().unsqueeze(2)) / 2
    torch.testing.assert_close(half_tanh(keys, query).double(), expected, atol=1.5e-7, rtol=0)


def test_gradients(case):
    attention, query, keys, mask = case
    query, keys = query.requires_grad_(), keys.requires_grad_()
    # the softmax is float32 on purpose, so tolerances and step are its own
    torch.autograd.gradcheck(
        lambda q, k: attention(q, k, mask)[0], (query, keys), eps=1e-2, atol=1e-3, rtol=1e-2, nondet_tol=1e-6
    )


def test_masked_softmax_of_half_precision_is_float32():
    weights = masked_softmax(
        torch.tensor([[1.0, 2.0, 60000.0]], dtype=torch.float16), torch.tensor([[True, True, False]])
    )
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([[1 / (1 + torch.e), torch.e / (1 + torch.e), 0.0]]))
