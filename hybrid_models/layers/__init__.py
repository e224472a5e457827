"""Layers that nets are made of: attention, recurrent cells, word decoders, ConvLSTM, image encoders, RNNs over
frames, advection; shapes alone (sketch).

Tensors in, tensors out; they know no configuration and no task. May be imported by every hybrid.
"""
