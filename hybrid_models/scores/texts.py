"""Metrics of texts, on the scales their communities print: BLEU and chrF 0–100, CIDEr-D 0–10."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from hybrid_models.errors import UsageError

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF


@dataclass(frozen=True)
class Tally:
    """A corpus score as a function of sums over samples: resampling a test set needs the sums alone.

    Args:
        parts: float64 [samples, parts], what each sample adds.
        score: their sum [parts] → the score.
        signature: sacrebleu's, without which its scores cannot be compared.
    """

    parts: np.ndarray
    score: Callable[[np.ndarray], float]
    signature: str = ""

    @property
    def total(self) -> float:
        """The score of all samples."""
        return self.score(self.parts.sum(0))


# ---- translations --------------------------------------------------------------------------------------------------
def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """Corpus BLEU (Papineni et al. 2002), 0–100, as sacrebleu computes it: 13a tokens, cased, exponential smoothing.

    Args:
        hypotheses: one raw (detokenised) text per sample.
        references: `references[i]` are the raw references of `hypotheses[i]`; their number may differ by sample.
    """
    from sacrebleu.metrics import BLEU

    return _sacrebleu(BLEU(), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """Corpus chrF2 (Popović 2015), 0–100, as sacrebleu computes it; arguments as in `bleu`."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu(CHRF(), hypotheses, references)


def _sacrebleu(metric: BLEU | CHRF, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """The statistics that sacrebleu's own significance tests resample."""
    parts = metric._extract_corpus_statistics(list(hypotheses), _streams(hypotheses, references))

    def score(total: np.ndarray) -> float:
        return float(metric._compute_score_from_stats([round(value) for value in total]).score)

    return Tally(np.asarray(parts, np.float64), score, str(metric.get_signature()))


def _streams(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[Any]:
    """sacrebleu wants the i-th references of all samples together, None where a sample has fewer."""
    _check_pairs(hypotheses, references)
    most = max(map(len, references))
    return [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]


def _check_pairs(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) != len(references):
        raise UsageError(
            f"{len(hypotheses)} hypotheses, references of {len(references)} samples: pass one list for each"
        )
    if not hypotheses:
        raise UsageError("no hypotheses to score: pass at least one sample")
    for i, refs in enumerate(references):
        if isinstance(refs, str) or not refs:
            raise UsageError(f"references[{i}] must be a non-empty list of texts, got {refs!r}")


# ---- captions ------------------------------------------------------------------------------------------------------
_CLITIC = regex.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
_TOKEN = regex.compile(
    r"n't(?!\w)"
    r"|'(?:s|m|d|re|ve|ll)(?!\w)"
    r"|can(?=not(?!\w))|(?<=can)not(?!\w)"
    r"|(?:mr|mrs|ms|dr|jr|sr|st)\.(?!\w)"
    r"|(?:[^\W\d_]\.){2,}"  # u.s.
    r"|\d+(?:[.,:/]\d+)+"
    r"|[\w\p{No}]+(?:[-.'/&][\w\p{No}]+)*"
    r"|[^\w\s][\p{M}\u200d]*"
)
_PUNCTUATION = frozenset("'`\".?!,:-;()[]{}…–—‘’“”")


def caption_tokens(text: str) -> list[str]:
    """Lower-case tokens without punctuation, in the manner of coco-caption's Penn Treebank tokenizer.

    Clitics are tokens of their own (`dog's` → `dog`, `'s`; `don't` → `do`, `n't`), hyphenated words stay whole. The
    original calls Stanford's Java tokenizer; this needs no Java and differs in fewer than 1 of 1,000 captions, mostly
    by dropping brackets, which the original leaves as `-lrb-`.
    """
    separated = _CLITIC.sub(r" \1", text.lower().replace("’", "'"))
    return [token for token in _TOKEN.findall(separated) if token not in _PUNCTUATION]


def caption_bleu4(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """Corpus BLEU-4 of captions, 0–100: `caption_tokens`, no smoothing, closest reference length, as coco-caption."""
    from sacrebleu.metrics import BLEU

    _check_pairs(hypotheses, references)
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    tokenised = [[_tokenised(reference) for reference in refs] for refs in references]
    tally = _sacrebleu(metric, [_tokenised(text) for text in hypotheses], tokenised)
    return replace(tally, signature="")  # which would say that case counts


def _tokenised(text: str) -> str:
    return " ".join(caption_tokens(text))


Ngram = tuple[str, ...]
CIDER_N = 4
CIDER_SIGMA = 6.0


def cider_d(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """CIDEr-D of captions, 0–10 (often printed times 100): Vedantam et al. 2015, section 4 and its "gaming" section.

    The mean over n = 1 … 4 of the clipped cosine between the tf-idf vectors of hypothesis and reference n-grams, with a
    Gaussian penalty (sigma 6) on the difference of lengths, averaged over references, times 10. Document frequencies
    come from `references`, so scores of different sets of samples do not compare; of a single sample it is 0. They stay
    those of all samples where the tally is resampled.
    """
    _check_pairs(hypotheses, references)
    judge = CiderD(references)
    scores = [judge.score(i, hypothesis) for i, hypothesis in enumerate(hypotheses)]
    return Tally(np.stack([scores, np.ones(len(scores))], axis=1), lambda total: float(total[0] / total[1]))


class CiderD:
    """`cider_d` against the same references again and again."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counts = [[_ngram_counts(caption_tokens(ref)) for ref in refs] for refs in references]
        frequency = Counter(ngram for refs in counts for ngram in set().union(*refs))
        self._unseen = math.log(len(references))
        self._idf = {ngram: self._unseen - math.log(count) for ngram, count in frequency.items()}
        self._references = [[_TfIdf(ref, self._idf, self._unseen) for ref in refs] for refs in counts]

    def score(self, sample: int, hypothesis: str) -> float:
        """Of a caption of the sample of this number."""
        refs = self._references[sample]
        vector = _TfIdf(_ngram_counts(caption_tokens(hypothesis)), self._idf, self._unseen)
        return 10 * sum(vector.similarity(ref) for ref in refs) / len(refs)


def _ngram_counts(tokens: Sequence[str]) -> Counter[Ngram]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, CIDER_N + 1) for i in range(len(tokens) - n + 1))


class _TfIdf:
    """A caption as tf-idf weights of its n-grams, with one norm per n."""

    def __init__(self, counts: Counter[Ngram], idf: Mapping[Ngram, float], unseen: float) -> None:
        self.weights = {ngram: count * idf.get(ngram, unseen) for ngram, count in counts.items()}
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 1)
        squares = [0.0] * CIDER_N
        for ngram, weight in self.weights.items():
            squares[len(ngram) - 1] += weight * weight
        self.norms = [math.sqrt(square) for square in squares]

    def similarity(self, reference: _TfIdf) -> float:
        products = [0.0] * CIDER_N
        for ngram in self.weights.keys() & reference.weights.keys():
            weight = reference.weights[ngram]
            products[len(ngram) - 1] += min(self.weights[ngram], weight) * weight  # clipping: repeating does not pay
        cosines = (
            product / (own * other) if own and other else 0.0
            for product, own, other in zip(products, self.norms, reference.norms, strict=True)
        )
        penalty = math.exp(-((self.length - reference.length) ** 2) / (2 * CIDER_SIGMA**2))
        return penalty * sum(cosines) / CIDER_N
