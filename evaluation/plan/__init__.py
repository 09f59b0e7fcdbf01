"""Everything about a run that is known before a model is loaded."""
