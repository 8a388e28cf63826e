"""Timing of code, and the paper's comparison of the layer with `nn.LSTM`."""
