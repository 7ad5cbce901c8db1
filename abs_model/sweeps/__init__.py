"""Sweeps over settings, from files in the format of Weights & Biases, without an account.

`run` is the whole: `definition` reads a file, `study` proposes settings with Optuna, `trials` runs
them, `report` tells what came out. `scripts/sweep.py` is the command line.
"""
