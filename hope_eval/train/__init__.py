"""Train small models that differ in nothing but their encoding."""
