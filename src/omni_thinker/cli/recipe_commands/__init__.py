"""`omni-thinker recipe ...`."""
