"""The pocket suite: small, generated tasks in the row schemas of three benchmarks."""
