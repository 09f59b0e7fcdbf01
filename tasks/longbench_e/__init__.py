"""LongBench-E: 13 tasks of LongBench, their rows spread evenly over three lengths."""
