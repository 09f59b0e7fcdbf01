"""The benchmarks: what is asked, and how an answer is scored.

Tasks are data (`longbench/*.yaml`); this package reads them, renders their prompts, reads
their rows and scores predictions. It needs no torch and knows nothing of the models, so a
file of predictions can be scored on any machine:

    from tasks.registry import find_task
    from tasks.scoring import score_file
"""
