"""The roof: resolve what is asked into a plan, run it, record it, show it.

`evaluation` is the only package that knows all three wings: `ahn` (the models), `tasks` (what
is asked and how it is scored) and `reports` (what a run leaves behind). It holds no model code,
no metric and no statistics of its own.
"""
