"""Checkpoints: found, read, checked and built; written, merged and split."""
