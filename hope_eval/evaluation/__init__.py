"""The loop, what it measures, and what that takes."""
