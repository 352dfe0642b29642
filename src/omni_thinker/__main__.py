"""`python -m omni_thinker`."""

from omni_thinker.cli.app import main

main()
