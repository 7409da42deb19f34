"""Figures for a paper, one kind a file; `hope_eval/show/plots.py` lists and writes them."""
