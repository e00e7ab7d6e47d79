"""Runs that are too long for one sitting or one machine: shares, Ray clusters, object storage, a log.

`unrain IN... -o OUT --shard I/N` needs nothing further; object storage and `--cluster` need the extra
`cluster`.
"""
