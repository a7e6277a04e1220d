"""What training and evaluation both stand on. Nothing here imports `train` or `eval`."""
