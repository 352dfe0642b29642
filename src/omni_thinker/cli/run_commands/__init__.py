"""Commands on a run's directory."""
