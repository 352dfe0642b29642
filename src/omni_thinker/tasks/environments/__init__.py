"""Environments: what speaks to an answer, so that a task has turns."""
