"""Conversations: answers to which an environment speaks, and the answers after that."""
