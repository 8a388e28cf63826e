"""Sentences in, sentences out: search, translator, pictures."""
