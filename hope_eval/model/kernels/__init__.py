"""Fast kernels: attention, the nll of tokens, token-wise layers in chunks."""
