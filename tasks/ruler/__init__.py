"""RULER (arXiv 2404.06654): rows made here, at any length, for any tokenizer."""
