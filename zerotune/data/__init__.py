"""Rows: files and hub data sets read, checked, and in one shape."""
