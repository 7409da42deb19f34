"""One position encoding a file; its file name is its name everywhere. The interface is `hope_eval/encoding.py`."""
