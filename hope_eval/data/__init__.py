"""Texts to evaluate and train on (long ones, labelled ones), and a tokenizer as tasks see it."""
