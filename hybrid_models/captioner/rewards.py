"""Self-critical training: captions that the model draws are rewarded by CIDEr-D, against the model's own usual reward.

Rennie et al. 2017, "Self-critical sequence training for image captioning", with the mean of the other drawn captions of
an image as the baseline instead of a greedy one (Luo 2020, "A better variant of self-critical sequence training").

Captions are scored where they are drawn, as tokens: a GPU would be waited for at every step, and would wait for whoever
scores texts.
"""

# ruff: noqa: N803, N806, N815 - shape suffixes, see contract.py

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from hybrid_models.errors import UsageError
from hybrid_models.scores.texts import CIDER_N, CIDER_SIGMA
from hybrid_models.symbols import BOS, EOS

DRAWN = 5
"""Captions drawn of each image."""
_BASE = 0x9E3779B97F4A7C15
"""Of the polynomials, modulo 2⁶⁴, that tell words and n-grams apart; odd, and large."""
_LONGEST = 4096
"""Bytes of a word by whose places words are told apart."""
_NO_DRAWN, _NO_REFERENCE = -1, -2


class Spelling(NamedTuple):
    """How each token of a vocabulary is written, so that words are compared and not the tokens that they were cut into:
    the same word can be drawn in other pieces."""

    code_V: Tensor
    """int64: the sum of its bytes, each times `_BASE` to the power of its place."""
    length_V: Tensor
    """int64: its bytes. The end symbol is a word of one, which no text has: so what comes before it is compared, too,
    and to break off as in "a dog in the" does not pay."""
    spaced_V: Tensor
    """bool: a space comes before."""
    power_P: Tensor
    """int64: `_BASE` to the power of each place."""


def spelling_of(tokens: Iterable[tuple[str, bool]], device: torch.device) -> Spelling:
    """A vocabulary's, from its `Tokenizer.spelling`."""
    written = [([1 + ord(byte) for byte in text], spaced) for text, spaced in tokens]
    written[EOS] = ([0xE05], True)
    codes = [sum(byte * pow(_BASE, place, 1 << 64) for place, byte in enumerate(text)) for text, _ in written]
    powers = [pow(_BASE, place, 1 << 64) for place in range(_LONGEST)]
    tensors = (
        torch.tensor(list(map(_signed, codes))),
        torch.tensor([len(text) for text, _ in written]),
        torch.tensor([spaced for _, spaced in written]),
        torch.tensor(list(map(_signed, powers))),
    )
    return Spelling(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def advantages(drawn: Tensor, references: Tensor, spelling: Spelling) -> Tensor:
    """How much better each drawn caption is than the mean of the others of its image, in CIDEr-D: float32 [B,K].

    Words are what is between spaces, `dog's` is one. Document frequencies are those of these images.

    Args:
        drawn: int64 [B,K,T], two or more captions of each image, padded after their end symbols.
        references: int64 [B,R,L], captions of each image after a start symbol; those that an image lacks are padding.
        spelling: of the tokens.

    Raises:
        UsageError: one image alone, of which every word is in every document and worth nothing.
    """
    if len(references) < 2:
        raise UsageError("rewards compare images: raise train.batch_size to 2 or more for each worker")
    rewards_BK, count = cider_d_of_tokens(drawn, references, spelling), drawn.shape[1]
    return (rewards_BK - rewards_BK.mean(dim=1, keepdim=True)) * (count / (count - 1))


def cider_d_of_tokens(drawn: Tensor, references: Tensor, spelling: Spelling) -> Tensor:
    """`scores.texts.cider_d` of each drawn caption, float32 [B,K], but for words that it takes apart (`dog's`,
    `cannot`, `50%`); the arguments are those of `advantages`."""
    drawn_BKW, length_BK = _words(drawn, spelling)
    references_BRU, length_BR = _words(references, spelling)
    gap_BKR = (length_BK.unsqueeze(2) - length_BR.unsqueeze(1)).float()
    penalty_BKR = torch.exp(-(gap_BKR**2) / (2 * CIDER_SIGMA**2))
    grams = zip(
        _ngrams(drawn_BKW, length_BK, _NO_DRAWN), _ngrams(references_BRU, length_BR, _NO_REFERENCE), strict=True
    )
    cosine_BKR = torch.stack([_cosine(own, other) for own, other in grams]).mean(dim=0)
    exists_BR = (references[:, :, 0] == BOS).float()
    total_BK = (penalty_BKR * cosine_BKR * exists_BR.unsqueeze(1)).sum(dim=2)
    return 10 * total_BK / exists_BR.sum(dim=1, keepdim=True)


def _words(tokens_XT: Tensor, spelling: Spelling) -> tuple[Tensor, Tensor]:
    """A code of each word [...,T], in order, and how many there are [...]; what is after them means nothing."""
    length_XT = spelling.length_V[tokens_XT]
    written_XT, spaced_XT = length_XT > 0, spelling.spaced_V[tokens_XT]
    space_before_XT = F.pad((spaced_XT & ~written_XT)[..., :-1], (1, 0), value=True)  # or the text begins
    starts_XT = written_XT & (spaced_XT | space_before_XT)
    before_XT = length_XT.cumsum(-1) - length_XT
    place_XT = before_XT - torch.where(starts_XT, before_XT, 0).cummax(-1).values
    codes_XT = spelling.code_V[tokens_XT] * spelling.power_P[place_XT % _LONGEST]
    number_XT = starts_XT.cumsum(-1)
    words_XT = torch.zeros_like(tokens_XT).scatter_add(-1, (number_XT - 1).clamp(min=0), codes_XT)
    return words_XT, number_XT[..., -1]


def _ngrams(words_XW: Tensor, length_X: Tensor, none: int) -> list[Tensor]:
    """Codes [...,W] of the n-grams, n = 1 … 4, by their first words; `none` where there is none."""
    place_W = torch.arange(words_XW.shape[-1], device=words_XW.device)
    base, codes_XW, found = _signed(_BASE), torch.zeros_like(words_XW), []
    for n in range(CIDER_N):
        codes_XW = codes_XW * base + F.pad(words_XW[..., n:], (0, min(n, words_XW.shape[-1])))
        found.append(codes_XW.masked_fill(place_W + n >= length_X.unsqueeze(-1), none))
    return found


def _cosine(drawn_BKW: Tensor, references_BRU: Tensor) -> Tensor:
    """The clipped cosines [B,K,R] between tf-idf vectors of n-grams.

    Sums are over all places of n-grams, each as large a part as there are places of the same n-gram."""
    rarity_BKW, rarity_BRU = _rarity(references_BRU, drawn_BKW), _rarity(references_BRU, references_BRU)
    count_BKW, count_BRU = _count(drawn_BKW, drawn_BKW), _count(references_BRU, references_BRU)
    norm_BK = (count_BKW * rarity_BKW**2).masked_fill(drawn_BKW == _NO_DRAWN, 0).sum(dim=2).sqrt()
    norm_BR = (count_BRU * rarity_BRU**2).masked_fill(references_BRU == _NO_REFERENCE, 0).sum(dim=2).sqrt()
    each_BRX = drawn_BKW.flatten(1).unsqueeze(1).expand(-1, references_BRU.shape[1], -1)
    there_BKRW = _count(each_BRX, references_BRU).unflatten(2, drawn_BKW.shape[1:]).transpose(1, 2)
    clipped_BKRW = torch.minimum(there_BKRW, count_BKW.unsqueeze(2))  # repeating does not pay
    product_BKR = (there_BKRW * clipped_BKRW / count_BKW.unsqueeze(2) * rarity_BKW.unsqueeze(2) ** 2).sum(dim=3)
    norms_BKR = norm_BK.unsqueeze(2) * norm_BR.unsqueeze(1)
    return torch.where(norms_BKR > 0, product_BKR / norms_BKR, 0.0)


def _count(grams: Tensor, among: Tensor) -> Tensor:
    """How often each n-gram [...,W] is among others [...,U], float32."""
    inside, grams = among.sort(dim=-1).values, grams.contiguous()
    return (torch.searchsorted(inside, grams, right=True) - torch.searchsorted(inside, grams)).float()


def _rarity(references_BRU: Tensor, grams: Tensor) -> Tensor:
    """The logarithm of the share of images, upside down, whose references have an n-gram; of one that none has as if
    one had."""
    images = len(references_BRU)
    codes_M, order_M = references_BRU.flatten().sort(stable=True)
    image_M = order_M // references_BRU[0].numel()  # of equal codes in their order
    new_M = F.pad((codes_M[1:] != codes_M[:-1]) | (image_M[1:] != image_M[:-1]), (1, 0), value=True)
    seen_M = F.pad(new_M.cumsum(0), (1, 0))
    wanted = grams.flatten()
    first, after = torch.searchsorted(codes_M, wanted), torch.searchsorted(codes_M, wanted, right=True)
    frequency = (seen_M[after] - seen_M[first]).clamp(min=1).view_as(grams)
    return (images / frequency.float()).log()  # of what is in all of them exactly 0


def _signed(number: int) -> int:
    """A number modulo 2⁶⁴ as int64 has it."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
