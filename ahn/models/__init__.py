"""Attention over sinks, window and memory, the cache, and the causal language models."""
