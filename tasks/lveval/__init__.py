"""LV-Eval: 11 data sets, each at five lengths up to 256k words (Yuan et al., 2024)."""
