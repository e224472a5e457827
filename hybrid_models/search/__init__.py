"""From a decoder's probabilities to words: beam search, and drawing samples.

Knows a step function and its state, no net. May be imported by every hybrid that writes words.
"""
