"""The translator, RNN Seq2Seq with additive attention: sentences → sentences.

`translator.py` is the hybrid: net, prediction, judgement; `preprocess.py` its configuration and preprocessing, and
`decoding.py` how it predicts, are free of torch. May be imported through the registry only, or by recipes.
"""
