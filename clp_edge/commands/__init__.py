"""One module a verb: parse, call, print. `run` is its function; `cli.py` names them.

A module imports torch and the rooms that compute only when it runs, so `--help` answers at once.
"""
