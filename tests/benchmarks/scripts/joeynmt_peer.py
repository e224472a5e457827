"""Trains, or searches with, JoeyNMT's recurrent net (Kreutzer et al. 2019) on given tokens, with its batches, loss and
search: asked by `tests.benchmarks.translating`."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from joeynmt.batch import Batch
from joeynmt.model import build_model
from joeynmt.search import search
from joeynmt.vocabulary import Vocabulary

HIDDEN = 414
"""So that both nets have as many weights: here the output layer is one of its own."""


def clock() -> float:
    """Seconds, read when all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(question: dict[str, Any]) -> dict[str, Any]:
    """Tokens (or sentences) a second, and the number of weights."""
    torch.set_num_threads(question["threads"])
    device = torch.device(question["device"])
    specials = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "sep_token": None}
    ids = {"unk_id": 0, "pad_id": 1, "bos_id": 2, "eos_id": 3, "lang_tags": []}
    words = [f"w{i}" for i in range(question["vocabulary"] - 4)]
    vocabulary = Vocabulary(words, SimpleNamespace(**specials, **ids))
    embeddings = {"embedding_dim": 256, "scale": False}
    dropout = question["dropout"]
    model = build_model(
        {
            "tied_embeddings": True,
            "encoder": {
                "type": "recurrent", "rnn_type": "gru", "embeddings": embeddings, "hidden_size": HIDDEN // 2,
                "bidirectional": True, "dropout": dropout, "num_layers": 1,
            },
            "decoder": {
                "type": "recurrent", "rnn_type": "gru", "embeddings": embeddings, "hidden_size": HIDDEN,
                "dropout": dropout, "hidden_dropout": dropout, "num_layers": 1, "input_feeding": True,
                "init_hidden": "bridge", "attention": "bahdanau",
            },
        },
        vocabulary,
        vocabulary,
    )  # fmt: skip
    model.loss_function = ("crossentropy", 0.1)
    model.to(device)
    autocast = {"device_type": device.type, "enabled": question["bf16"], "dtype": torch.bfloat16}

    def batch_of(pairs: list[Any], training: bool) -> Batch:
        pairs = sorted(pairs, key=lambda pair: -len(pair[0]))
        sources = [torch.tensor([*source]) for source, _ in pairs]
        targets = [torch.tensor([2, *target, 3]) for _, target in pairs]
        pad = torch.nn.utils.rnn.pad_sequence
        return Batch(
            src=pad(sources, True, 1), src_length=torch.tensor([len(s) for s in sources]), src_prompt_mask=None,
            trg=pad(targets, True, 1) if training else None, trg_prompt_mask=None, indices=torch.arange(len(pairs)),
            device=device, pad_index=1, eos_index=3, is_train=training,
        )  # fmt: skip

    if question["what"] == "train":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        model.train()

        def work(pairs: list[Any]) -> int:
            batch = batch_of(pairs, training=True)
            with torch.autocast(**autocast):
                loss, _, _, _ = model(return_type="loss", **vars(batch))
            (loss / batch.ntokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return sum(len(target) + 1 for _, target in pairs)
    else:
        model.eval()

        def work(pairs: list[Any]) -> int:
            found, _, _ = search(
                model=model, batch=batch_of(pairs, training=False), max_output_length=question["length"] + 1,
                beam_size=question["beam"], beam_alpha=1.0, autocast=autocast, min_output_length=question["length"],
            )  # fmt: skip
            assert found.shape[1] >= question["length"], found.shape
            return len(found)

    for batch in question["batches"][:2]:
        work(batch)
    began = clock()
    done = sum(map(work, question["batches"]))
    seconds = clock() - began
    return {"weights": sum(p.numel() for p in model.parameters()), "rate": done / seconds}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.stdin.read()))))
