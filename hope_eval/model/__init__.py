"""Checkpoints as language models that score tokens."""
