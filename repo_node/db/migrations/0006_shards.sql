-- The owners of shards say why one takes no writes or is not there.

ALTER TABLE shard_space ADD COLUMN reason text NOT NULL DEFAULT '';

-- The weight of a new shard follows from its capacity, where nobody says otherwise.
ALTER TABLE shards ADD COLUMN share_bytes bigint;

CREATE FUNCTION capacity_weight(p_share_bytes bigint)
RETURNS double precision LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_share_bytes IS NULL OR count(*) = 0 THEN 1 ELSE round(least(10, greatest(0.1, p_share_bytes
               / percentile_cont(0.5) WITHIN GROUP (ORDER BY s.share_bytes / s.weight)))::numeric, 2) END
      FROM shards s WHERE s.share_bytes > 0 AND s.state <> 'lost'
$$;
