"""Recurrent word decoders, with and without attention: the RNN half of the captioner and of the translator.

Training unrolls whole target sequences at once: what does not depend on the previous state (embeddings, their gates,
keys) is computed up front; the softmax, and the gradients of matrices, once after the loop; for real tokens only. Where
the keys are few for so many words, the loop is `attention_walk`.
"""

# ruff: noqa: N806 - shape suffixes, see contract.py

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from hybrid_models import shapes
from hybrid_models.contract import Loss
from hybrid_models.layers.attention import AdditiveAttention
from hybrid_models.layers.attention_walk import attention_walk
from hybrid_models.layers.recurrent import GATES, RNNS, Cell, RepeatedProduct, advance, read
from hybrid_models.search.beam import Hypothesis, State, in_places, search
from hybrid_models.search.options import SearchOptions
from hybrid_models.symbols import BOS, PAD
from hybrid_models.text import pad_rows, written_places

ROWS = 64
"""The softmax works on a multiple of so many tokens: on CPUs a matrix product compiles anew for each size not seen yet,
which takes longer than the product."""


class WordDecoder(nn.Module, abc.ABC):
    """Embeds the previous word, advances a recurrent state, and predicts the next word.

    Output layer: logits = W tanh(R [features; embedding]) + b, where W is the embedding matrix if `tie_embeddings`
    (Press & Wolf 2017; held once, so that a state dict has no shared tensors).

    Args:
        vocabulary: number of tokens V.
        embedding_size: size E of a token's vector.
        feature_size: size F of what `unroll` gives.
        dropout: on embeddings and on what the output layer sees.
        tie_embeddings: whether the output layer is the embedding matrix.
    """

    def __init__(
        self, vocabulary: int, embedding_size: int, feature_size: int, dropout: float, tie_embeddings: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_size, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=embedding_size**-0.5)
        self.readout = nn.Linear(feature_size + embedding_size, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.output_bias = nn.Parameter(torch.zeros(vocabulary))
        self.output_weight = None if tie_embeddings else nn.Parameter(self.embedding.weight.detach().clone())

    @abc.abstractmethod
    def unroll(self, embedded: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """embedded [N,T,E], state of N, memory of B (N = B·R, rows of a source side by side) → [N,T,F], state."""

    def prepare(self, memory: State) -> State:
        """Adds to a memory what is computed once per source."""
        return memory

    def search(
        self, state: State, memory: State, max_length: Sequence[int], options: SearchOptions
    ) -> list[Hypothesis]:
        """The best text of each of B sources, see `search.beam.search`.

        Args:
            state: initial state, leading axis B.
            memory: as `prepare` gives it, leading axes B and S.
            max_length: most tokens of each.
            options: how to search.
        """
        memory = self.look_up(in_places(memory), max_length, options)
        return search(self.cast_once().step, state, memory, max_length, options)

    def cast_once(self) -> Self:
        """Itself; under autocast another one whose matrices are in autocast's type: the steps of a search would cast
        them anew each time. The output layer, which multiplies in float32, and all else it shares; it is for `step`,
        and for these weights alone."""
        device = self.output_bias.device.type
        if not torch.is_autocast_enabled(device):
            return self
        kind = torch.get_autocast_dtype(device)
        exact = {id(self.embedding.weight), id(self.output_weight)}
        held: dict[int, Any] = {}
        for weight in self.parameters():
            cast = weight.dim() > 1 and id(weight) not in exact
            held[id(weight)] = nn.Parameter(weight.to(kind), requires_grad=False) if cast else weight
        return copy.deepcopy(self, held)

    def look_up(self, memory: State, max_length: Sequence[int], options: SearchOptions) -> State:
        """A memory for `step` alone, with products of it that cost less once than at each step of a search."""
        return memory

    def share(self, memory: State, words: int) -> State:
        """A memory for `step` and `loss`, with products of it that cost less once than for each of so many words."""
        return memory

    def attend(self, texts: Sequence[Sequence[int]], state: State, memory: State) -> list[np.ndarray] | None:
        """Where it looks while it writes a text's T tokens and the end symbol: float32 [T+1,S] of each of N texts; None
        without attention."""
        return None

    def loss(
        self,
        targets: Tensor,
        written: Tensor,
        state: State,
        memory: State,
        label_smoothing: float,
        weights: Tensor | None = None,
    ) -> Loss:
        """Negative log likelihood under teacher forcing, summed over real tokens.

        Args:
            targets: int64 [N,T]: start symbol, words, end symbol, padding (`PAD`, which costs nothing).
            written: int64 [M], what `written` says of the targets, or all places.
            state: initial state, leading axis N.
            memory: as `prepare` or `share` gives it, leading axis B, where N = B·R.
            label_smoothing: share of the target mass spread over all words; 0 when not training.
            weights: [N], by which each text's tokens are weighted.
        """
        embedded_NTE = self.dropout(self.embedding(targets[:, :-1]))
        words = targets[:, 1:].flatten()
        chosen = F.pad(written, (0, -len(written) % ROWS), value=len(words))
        chosen_words = F.pad(words, (0, 1), value=PAD)[chosen]
        inside = chosen.clamp(max=len(words) - 1)
        logits = self._logits(self.read(embedded_NTE, inside, state, memory)).float()
        costs = F.cross_entropy(
            logits, chosen_words, ignore_index=PAD, label_smoothing=label_smoothing, reduction="none"
        )
        if weights is not None:
            costs = costs * weights.repeat_interleave(targets.shape[1] - 1)[inside]
        return Loss(costs.sum(), (words != PAD).sum())

    def written(self, targets: np.ndarray) -> Tensor:
        """int64 [M]: the `text.written_places` of targets [N,T], on the host; where shapes count with some that are one
        after the last place, of padding."""
        places = written_places(targets)
        if shapes.has_shapes(self.output_bias.device):
            more = shapes.bucket(len(places)) - len(places)
            places = np.pad(places, (0, more), constant_values=targets[:, 1:].size)
        return torch.from_numpy(places)

    def read(self, embedded: Tensor, chosen: Tensor, state: State, memory: State) -> Tensor:
        """`R [features; embedding]` [M,E] of chosen places in [N·T]; the other arguments are those of `unroll`."""
        features_NTF, _ = self.unroll(embedded, state, memory)
        return self._readout(features_NTF.flatten(0, 1)[chosen], embedded.flatten(0, 1)[chosen])

    @abc.abstractmethod
    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """One step of a search, see `search.beam.Step`: tokens [N] → log_probs float32 [N,V]."""

    def _readout(self, features: Tensor, embedded: Tensor) -> Tensor:
        read: Tensor = self.readout(torch.cat([features, embedded.to(features.dtype)], dim=-1))
        return read

    def _log_probs(self, read: Tensor) -> Tensor:
        """float32 throughout: of logits in bfloat16 many would be equal, and a text's score is a sum of them."""
        with torch.autocast(read.device.type, enabled=False):
            return torch.log_softmax(self._logits(read.to(self.output_bias.dtype)).float(), dim=-1)

    def _logits(self, read: Tensor) -> Tensor:
        readout = self.dropout(torch.tanh(read))
        weight = self.embedding.weight if self.output_weight is None else self.output_weight
        return F.linear(readout, weight, self.output_bias)


class PlainDecoder(WordDecoder):
    """Without attention: the source is in the initial state alone (Vinyals et al. 2015, "Show and tell")."""

    def __init__(
        self,
        vocabulary: int,
        embedding_size: int,
        hidden_size: int,
        cell: Cell,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
    ) -> None:
        super().__init__(vocabulary, embedding_size, hidden_size, dropout, tie_embeddings)
        self.rnn = RNNS[cell](embedding_size, hidden_size, batch_first=True)

    def unroll(self, embedded: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        return read(self.rnn, embedded, state)

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        embedded_NE = self.embedding(tokens)
        weight_GE, weight_GD, word_bias_G, hidden_bias_G = self.rnn.all_weights[0]
        hidden_gates_NG = F.linear(state["hidden"], weight_GD, hidden_bias_G)
        state = advance(state, F.linear(embedded_NE, weight_GE, word_bias_G), hidden_gates_NG)
        return self._log_probs(self._readout(state["hidden"], embedded_NE)), state


class AttentionDecoder(WordDecoder):
    """With additive attention (Bahdanau et al. 2015): the state that has read a word asks for what the next one needs;
    the context enters the cell with that next word (Luong et al. 2015, §3.1, and "input feeding", §3.3).

    h_t = cell([embedding_t; context_{t-1}], h_{t-1}),  context_t = attention(h_t, keys),  features_t = [h_t; context_t]

    State: `hidden` (and `cell`) [N,D], and `context` [N,K], which is 0 before the first word.

    Memory: `keys` [B,S,K], `mask` bool [B,S] (True where valid), and `projected` [B,S,A] from `prepare`.
    The cells are those of `nn.GRU` (Cho et al. 2014) and `nn.LSTM` (Hochreiter & Schmidhuber 1997).
    """

    def __init__(
        self,
        vocabulary: int,
        embedding_size: int,
        hidden_size: int,
        key_size: int,
        attention_size: int,
        cell: Cell,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
    ) -> None:
        super().__init__(vocabulary, embedding_size, hidden_size + key_size, dropout, tie_embeddings)
        gates = GATES[cell] * hidden_size
        self.attention = AdditiveAttention(hidden_size, key_size, attention_size)
        self.word_gates = nn.Linear(embedding_size, gates)
        self.context_gates = nn.Linear(key_size, gates, bias=False)
        self.hidden_gates = nn.Linear(hidden_size, gates)

    def prepare(self, memory: State) -> State:
        projected_BSA = self.attention.project_keys(memory["keys"])
        return {**memory, "keys": memory["keys"].to(projected_BSA.dtype), "projected": projected_BSA}

    def unroll(self, embedded: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        hidden, contexts, _, state = self._walk(embedded, state, memory)
        hidden_NTD, contexts_NTK = torch.stack(hidden, dim=1), torch.stack(contexts, dim=1)
        return torch.cat([hidden_NTD.to(contexts_NTK.dtype), contexts_NTK], dim=2), state

    def read(self, embedded: Tensor, chosen: Tensor, state: State, memory: State) -> Tensor:
        memory = self.share(memory, embedded.shape[0] * embedded.shape[1])
        if "keys" in memory:
            return super().read(embedded, chosen, state, memory)
        readout_ED, _, readout_EE = self._readout_parts()
        hidden_NTD, weights_NTS = attention_walk(
            self.word_gates(embedded),
            state,
            memory["gates"],
            memory["projected"],
            memory["mask"],
            (self.hidden_gates.weight, self.hidden_gates.bias),
            self.attention.query.weight,
            self.attention.energy.weight[0],
        )
        context_NTE = _mean(weights_NTS.flatten(0, 1), memory["readout"]).view(*embedded.shape)
        own_NTE = F.linear(hidden_NTD, readout_ED, self.readout.bias) + F.linear(embedded, readout_EE)
        return (own_NTE + context_NTE).flatten(0, 1)[chosen]

    def attend(self, texts: Sequence[Sequence[int]], state: State, memory: State) -> list[np.ndarray]:
        written_NT = torch.from_numpy(pad_rows([np.asarray([BOS, *tokens]) for tokens in texts]))
        *_, weights, _ = self._walk(self.embedding(written_NT.to(memory["keys"].device)), state, memory)
        weights_NTS = torch.stack([weights_BRS.flatten(0, 1) for weights_BRS in weights], dim=1).detach().float().cpu()
        return [weights_TS[: len(tokens) + 1].numpy() for weights_TS, tokens in zip(weights_NTS, texts, strict=True)]

    def look_up(self, memory: State, max_length: Sequence[int], options: SearchOptions) -> State:
        """A context is a mean of keys, and so are its products with matrices of theirs: where a source has fewer places
        than words will be written about it (half of the most, as a rule), keys are multiplied instead of contexts."""
        keys_BSK = memory["keys"]
        if 2 * keys_BSK.shape[0] * keys_BSK.shape[1] >= options.most_tokens(max_length):
            return memory
        return self._multiplied(memory)

    def share(self, memory: State, words: int) -> State:
        """As `look_up`, but for texts that are known to have so many words, padding included. Keys of a frozen encoder
        need no gradients, which is one product of three: so they may be half as many again."""
        if "keys" not in memory or 2 * memory["keys"].shape[0] * memory["keys"].shape[1] >= 3 * words:
            return memory
        return self._multiplied(memory)

    def _multiplied(self, memory: State) -> State:
        keys_BSK = memory["keys"]
        _, readout_EK, _ = self._readout_parts()
        return {
            "mask": memory["mask"],
            "projected": memory["projected"],
            "gates": F.linear(keys_BSK, self.context_gates.weight),
            "readout": F.linear(keys_BSK, readout_EK),
        }

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        embedded_NE = self.embedding(tokens)
        gates_NG = self.word_gates(embedded_NE)
        if "context" in state:
            gates_NG = gates_NG + self.context_gates(state["context"])
        elif "weights" in state:
            gates_NG = gates_NG + _mean(state["weights"], memory["gates"])
        state = advance(state, gates_NG, self.hidden_gates(state["hidden"]))
        query_BRD = state["hidden"].unflatten(0, (len(memory["mask"]), -1))
        weights_NS = self.attention.weights(query_BRD, memory["mask"], memory["projected"]).flatten(0, 1)
        if "keys" in memory:
            context_NK = _mean(weights_NS, memory["keys"])
            features_NF = torch.cat([state["hidden"].to(context_NK.dtype), context_NK], dim=1)
            return self._log_probs(self._readout(features_NF, embedded_NE)), {**state, "context": context_NK}
        readout_ED, _, readout_EE = self._readout_parts()
        readout_NE = F.linear(state["hidden"], readout_ED, self.readout.bias) + F.linear(embedded_NE, readout_EE)
        return self._log_probs(readout_NE + _mean(weights_NS, memory["readout"])), {**state, "weights": weights_NS}

    def _readout_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The readout's matrices of hidden state, context and embedding."""
        sizes = [self.hidden_gates.in_features, self.context_gates.in_features, self.embedding.embedding_dim]
        hidden, context, embedded = self.readout.weight.split(sizes, dim=1)
        return hidden, context, embedded

    def _walk(
        self, embedded: Tensor, state: State, memory: State
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], State]:
        """Hidden states [N,D], contexts [N,K] and attention weights [B,R,S] of all steps, and the last state."""
        steps, sources = embedded.shape[1], len(memory["keys"])
        word_gates_NTG = self.word_gates(embedded)
        keys_BSK = RepeatedProduct(memory["keys"], steps)
        weight_KG = RepeatedProduct(self.context_gates.weight.t().to(word_gates_NTG.dtype), steps)
        weight_DG = RepeatedProduct(self.hidden_gates.weight.t().to(word_gates_NTG.dtype), steps)
        context_NK = state.get("context", word_gates_NTG.new_zeros(len(embedded), memory["keys"].shape[2]))
        hidden, contexts, weights = [], [], []
        for words_NG in word_gates_NTG.unbind(1):
            hidden_gates_NG = weight_DG(state["hidden"]) + self.hidden_gates.bias
            state = advance(state, words_NG + weight_KG(context_NK), hidden_gates_NG)
            query_BRD = state["hidden"].view(sources, -1, state["hidden"].shape[1])
            weights_BRS = self.attention.weights(query_BRD, memory["mask"], memory["projected"])
            context_NK = keys_BSK(weights_BRS).flatten(0, 1)
            hidden.append(state["hidden"])
            contexts.append(context_NK)
            weights.append(weights_BRS)
        state = {**state, "context": context_NK}
        return hidden, contexts, weights, state


def _mean(weights: Tensor, memory: Tensor) -> Tensor:
    """weights [N,S] of places, N = B·R, and their vectors [B,S,X] → [N,X]."""
    return torch.bmm(weights.unflatten(0, (len(memory), -1)).to(memory.dtype), memory).flatten(0, 1)


def word_decoder(
    vocabulary: int,
    embedding_size: int,
    hidden_size: int,
    key_size: int,
    attention_size: int | None,
    cell: Cell,
    dropout: float,
    tie_embeddings: bool,
) -> WordDecoder:
    """A decoder with attention, or without (`attention_size` None): then the source is in the initial state alone."""
    sizes = (vocabulary, embedding_size, hidden_size)
    if attention_size is None:
        return PlainDecoder(*sizes, cell, dropout, tie_embeddings)
    return AttentionDecoder(*sizes, key_size, attention_size, cell, dropout, tie_embeddings)
