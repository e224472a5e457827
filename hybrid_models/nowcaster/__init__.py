"""The nowcaster, ConvLSTM: past frames of radar or video → the next ones.

`nowcaster.py` is the hybrid: net, prediction, judgement. Free of torch are `interface.py`, what it is to others,
`preprocess.py`, what it reads, and, free of arrays, too, its options: `config.py`, and `decoding.py`, how it predicts.
May be imported through the registry only, or by recipes.
"""
