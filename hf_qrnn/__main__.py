"""`python -m hf_qrnn` is the command `hf-qrnn`."""

from hf_qrnn.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
