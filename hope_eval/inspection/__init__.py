"""Look at encodings and models, and at what they do."""
