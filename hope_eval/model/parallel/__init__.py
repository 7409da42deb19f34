"""Several processes that hold one model together, or read one text together."""
