"""`python -m omni_thinker`."""

from omni_thinker.cli import main

main()
