"""LongBench: 21 tasks in English, Chinese and code (Bai et al., 2023)."""
