"""The evaluation loop, its measurements, and their cost."""
