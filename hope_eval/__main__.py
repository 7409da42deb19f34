"""`python -m hope_eval` is `hope-eval`."""

from hope_eval.cli import main

main()
