"""Multi-task RL post-training of language models: hybrid rewards, transfer, plans, honest studies.

Implements the method of Omni-Thinker (arXiv 2507.14783).
"""

__version__ = "0.1.0"
