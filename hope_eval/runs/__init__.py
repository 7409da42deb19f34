"""A run on disk: records that survive a kill, shards of several processes, and the provenance of a run."""
