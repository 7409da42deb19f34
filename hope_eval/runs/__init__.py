"""A run on disk: records that survive a kill, shards of several processes, and where a run comes from."""
