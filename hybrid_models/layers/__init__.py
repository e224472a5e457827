"""Layers that nets are made of: attention, recurrent cells and word decoders, ConvLSTM, image encoders, advection.

Tensors in, tensors out; they know no configuration and no task. May be imported by every hybrid.
"""
