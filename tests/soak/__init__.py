"""Hours of life in minutes: readers on every front while objects change, processes die and the store fails.

`python -m tests.soak --minutes 30` (or `make soak MINUTES=30`) runs it and prints its figures; `test_soak.py` is a
short one for every test run.
"""
