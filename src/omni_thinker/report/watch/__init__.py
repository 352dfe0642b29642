"""The report of a run that may still be at work, served to a browser of this machine."""
