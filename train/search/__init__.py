"""Hyperparameter search: trials of one recipe as ordinary runs, chosen by Optuna, in a study folder that several
processes share.
"""
