"""Attention over packed rows, one file for each way to compute it."""
