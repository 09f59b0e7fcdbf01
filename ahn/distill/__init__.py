"""Training: memories by self-distillation, and small base models from scratch."""
