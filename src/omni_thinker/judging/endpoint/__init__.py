"""Asking a model behind an OpenAI-compatible API: one question, its reply, and every way in which there is none."""
