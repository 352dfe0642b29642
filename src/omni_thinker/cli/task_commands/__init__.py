"""`omni-thinker tasks ...`."""
