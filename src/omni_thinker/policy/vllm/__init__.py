"""Answers drawn by vLLM, in processes of its own or on a server. Nothing here imports vLLM before it is used."""
