"""The plugin for lm-evaluation-harness."""
