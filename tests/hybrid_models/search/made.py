"""A language small enough to look at every text of it."""

import itertools

import torch

from hybrid_models.search.beam import Hypothesis

V, START, END = 4, 0, 1


class TableModel:
    """A made-up language: the next token's distribution depends on the last two tokens, the position and the source."""

    def __init__(self, sources: int, seed: int = 0, end_bias: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(sources, 12, V, V, V, generator=generator) * 1.5
        logits[..., END] += end_bias
        logits[..., START] = float("-inf")
        self.table = torch.log_softmax(logits, dim=-1)
        self.rows_seen: list[int] = []

    def initial(self, sources: list[int]):
        state = {"last": torch.full((len(sources),), START), "at": torch.zeros(len(sources), dtype=torch.long)}
        return state, {"source": torch.tensor(sources)}

    def step(self, tokens, state, memory):
        self.rows_seen.append(len(tokens))
        source = memory["source"].repeat_interleave(len(tokens) // len(memory["source"]))
        log_probs = self.table[source, state["at"], state["last"], tokens]
        return log_probs.clone(), {"last": tokens, "at": state["at"] + 1}

    def log_prob(self, source: int, tokens: tuple[int, ...]) -> float:
        history, total = (START, START, *tokens, END), 0.0
        for i in range(len(tokens) + 1):
            total += float(self.table[source, i, history[i], history[i + 1], history[i + 2]])
        return total

    def best(self, source: int, min_length: int, max_length: int, alpha: float, no_repeat: int = 0) -> Hypothesis:
        """The argmax over every output of allowed length, none of whose sequences of `no_repeat` tokens come twice."""
        return max(
            (
                Hypothesis(list(tokens), self.log_prob(source, tokens) / ((5 + length + 1) / 6) ** alpha)
                for length in range(min_length, max_length + 1)
                for tokens in itertools.product(range(2, V), repeat=length)
                if not repeats(tokens, no_repeat)
            ),
            key=lambda hypothesis: hypothesis.score,
        )

    def greedy(self, source: int, max_length: int) -> list[int]:
        history = [START, START]
        for at in range(max_length):
            token = int(self.table[source, at, history[-2], history[-1]].argmax())
            if token == END:
                break
            history.append(token)
        return history[2:]


def repeats(tokens, n):
    sequences = [tokens[i : i + n] for i in range(len(tokens) - n + 1)] if n else []
    return len(set(sequences)) < len(sequences)
