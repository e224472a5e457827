"""Three hybrid networks — captioner, nowcaster, translator — in torch and numpy, behind one contract."""

from hybrid_models.attention import AdditiveAttention
from hybrid_models.captioner import Captioner
from hybrid_models.contract import BadSample, Hybrid, UsageError
from hybrid_models.conv_lstm import ConvLSTM, ConvLSTMCell
from hybrid_models.nowcaster import Nowcaster
from hybrid_models.translator import Translator

HYBRIDS: dict[str, type[Hybrid]] = {hybrid.name: hybrid for hybrid in (Captioner, Nowcaster, Translator)}

__all__ = [
    "HYBRIDS",
    "AdditiveAttention",
    "BadSample",
    "Captioner",
    "ConvLSTM",
    "ConvLSTMCell",
    "Hybrid",
    "Nowcaster",
    "Translator",
    "UsageError",
]
