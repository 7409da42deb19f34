"""Figures for a paper, one kind a file; `hope_eval/results/plots.py` lists and writes them."""
