"""Times code; compares the layer with `nn.LSTM` as the paper does."""
