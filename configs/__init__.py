"""Configuration that ships with the package: presets, model shapes, training recipes (YAML)."""
