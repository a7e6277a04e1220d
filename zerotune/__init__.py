"""What training and evaluation share; nothing in here imports `train` or `eval`."""
