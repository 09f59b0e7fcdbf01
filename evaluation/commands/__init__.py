"""The commands of `run_eval`, one file each."""
