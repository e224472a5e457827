"""How good predictions are: texts (BLEU, chrF, CIDEr-D), frames and rain (CSI, FSS, SSIM), probabilities (CRPS, Brier).

Numpy in, sums and figures out, in all a `Tally` that can be resampled (`significance`). No net, no file.
"""
