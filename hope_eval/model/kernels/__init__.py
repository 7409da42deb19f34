"""What computes fast: attention, the nll of tokens, token-wise layers in chunks."""
