"""`omni-thinker model ...`, `merge` and `push`."""
