"""German-English sentences by a small grammar of each language."""
