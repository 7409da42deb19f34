"""Texts: long ones, labelled ones, and a tokenizer as tasks see it."""
