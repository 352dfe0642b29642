"""Experiment trackers: a process of its own follows a run's metrics.jsonl and sends each row once."""
