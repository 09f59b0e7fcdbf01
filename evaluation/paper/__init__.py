"""The tables and figures of the AHN paper (arXiv 2510.07318)."""
