"""`python -m train.cli` is the command `zerotune`, in a checkout that is not installed."""

from train.cli import main

main()
