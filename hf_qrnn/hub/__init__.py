"""The push of a model to the Hub, and its verification."""
