-- The owners of shards say why one takes no writes or is not there.

ALTER TABLE shard_space ADD COLUMN reason text NOT NULL DEFAULT '';
