"""The campaign: unrain under attack, from outside. `python -m tests.attack --help` says how it is run."""
