"""The run directory: metrics, results, progress."""
