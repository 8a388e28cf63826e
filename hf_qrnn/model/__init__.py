"""The models: every file that ends in `_qrnn.py` travels with a saved model."""
