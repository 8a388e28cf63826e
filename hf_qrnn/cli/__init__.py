"""The command `hf-qrnn`, one file a command."""
