"""SCBench: 12 tasks of several questions about one shared context (Li et al., 2024)."""
