"""`python -m evaluation` is `run_eval`."""

from evaluation.cli import main

if __name__ == "__main__":
    main()
