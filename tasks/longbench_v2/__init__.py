"""LongBench v2: 503 questions of four choices about long texts (Bai et al., 2024)."""
