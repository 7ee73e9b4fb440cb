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

CREATE FUNCTION claim_shard(
    p_uid uuid, p_node text, p_path text, p_weight double precision, p_incarnation uuid, p_share_bytes bigint
)
RETURNS TABLE (shard smallint, outcome text) LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM shards s WHERE s.uid = p_uid) THEN
        PERFORM pg_advisory_xact_lock(3, 1);
        INSERT INTO shards (uid, node_id, path, weight, owner, share_bytes)
        SELECT p_uid, n.id, p_path, coalesce(p_weight, capacity_weight(p_share_bytes)), p_incarnation, p_share_bytes
          FROM nodes n WHERE n.id = p_node AND n.incarnation = p_incarnation
           AND NOT EXISTS (SELECT 1 FROM shards s WHERE s.uid = p_uid);
    END IF;
    RETURN QUERY
    UPDATE shards s
       SET node_id = n.id, path = p_path, owner = n.incarnation, share_bytes = coalesce(p_share_bytes, s.share_bytes),
           weight = CASE WHEN s.weight_set OR p_weight IS NULL THEN s.weight ELSE p_weight END
      FROM nodes n
     WHERE s.uid = p_uid AND n.id = p_node AND n.incarnation = p_incarnation
       AND CASE WHEN s.node_id = n.id THEN s.owner IS DISTINCT FROM n.incarnation OR s.path = p_path
                ELSE NOT EXISTS (SELECT 1 FROM nodes o
                                  WHERE o.id = s.node_id AND o.incarnation = s.owner AND node_is_up(o))
           END
    RETURNING s.id, 'claimed';
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT NULL::smallint, CASE WHEN EXISTS (SELECT 1 FROM nodes n
                                                  WHERE n.id = p_node AND n.incarnation = p_incarnation)
                                    THEN 'in_use' ELSE 'fenced' END;
    END IF;
END
$$;

-- A claim or release is not announced any more: what a node has open, it announces when it has reported it.
DROP TRIGGER shards_announced ON shards;
CREATE TRIGGER shards_announced AFTER INSERT OR DELETE ON shards
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER shards_change_announced AFTER UPDATE ON shards
    FOR EACH ROW WHEN ((old.node_id, old.path, old.weight, old.state, old.replaced)
                       IS DISTINCT FROM (new.node_id, new.path, new.weight, new.state, new.replaced))
    EXECUTE FUNCTION announce_change();

-- The last copies on a shard that never comes back can be given up, by their number.
ALTER TABLE shard_walks ADD COLUMN last_copies bigint NOT NULL DEFAULT 0;
ALTER TABLE shard_walks ADD COLUMN give_up bigint NOT NULL DEFAULT 0;

CREATE FUNCTION give_up_last_copies(p_shard smallint, p_copies bigint, p_principal text, p_request text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_state text;
    v_walk  shard_walks;
BEGIN
    SELECT s.state INTO v_state FROM shards s WHERE s.id = p_shard FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'absent';
    ELSIF v_state <> 'lost' THEN
        RETURN 'not_lost';
    END IF;
    SELECT w.* INTO v_walk FROM shard_walks w WHERE w.shard_id = p_shard FOR NO KEY UPDATE;
    IF NOT FOUND OR v_walk.kind <> 'forget' OR v_walk.passes = 0 OR v_walk.cursor IS NOT NULL THEN
        RETURN 'not_counted';
    ELSIF v_walk.last_copies <> p_copies OR p_copies = 0 THEN
        RETURN 'counted_otherwise';
    END IF;
    UPDATE shard_walks w SET give_up = p_copies, passes = 0, due_at = clock_timestamp() WHERE w.shard_id = p_shard;
    INSERT INTO events (kind, principal, request_id, detail)
    VALUES ('shard_give_up', p_principal, p_request, jsonb_build_object('shard', p_shard, 'copies', p_copies));
    RETURN 'forgetting';
END
$$;

CREATE OR REPLACE FUNCTION walk_shard(p_count integer, p_again_seconds double precision, p_lost_again_seconds double precision)
RETURNS TABLE (at_shard smallint, at_kind text, stepped bigint, acted bigint, ended boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_walk  shard_walks;
    v_zones bigint := ring_zones();
    v_row   record;
    v_back  bigint := 0;
    v_last  bigint := 0;
BEGIN
    SELECT w.* INTO v_walk FROM shard_walks w WHERE w.due_at <= clock_timestamp()
     ORDER BY w.due_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    at_shard := v_walk.shard_id;
    at_kind := v_walk.kind;
    stepped := 0;
    acted := 0;
    FOR v_row IN
        SELECT s.generation, s.blob_id FROM (
            SELECT r.generation, r.blob_id FROM replicas r
             WHERE r.shard_id = v_walk.shard_id
               AND r.generation > coalesce(v_walk.cursor, '00000000-0000-0000-0000-000000000000')
             ORDER BY r.generation LIMIT p_count
        ) AS s LEFT JOIN blobs b ON b.id = s.blob_id ORDER BY b.sha256
    LOOP
        stepped := stepped + 1;
        v_walk.cursor := greatest(v_walk.cursor, v_row.generation);
        IF v_row.blob_id IS NOT NULL THEN
            CASE walk_replica(v_walk.kind, v_walk.shard_id, v_row.generation, v_row.blob_id, v_zones)
                WHEN 'acted' THEN acted := acted + 1;
                WHEN 'kept' THEN v_back := v_back + 1;
                WHEN 'last' THEN
                    IF v_walk.give_up > 0 THEN
                        DELETE FROM replicas r WHERE r.shard_id = v_walk.shard_id AND r.generation = v_row.generation;
                        v_walk.give_up := v_walk.give_up - 1;
                        acted := acted + 1;
                    ELSE
                        v_back := v_back + 1;
                        v_last := v_last + 1;
                    END IF;
                ELSE NULL;
            END CASE;
        END IF;
    END LOOP;
    ended := stepped < p_count;
    UPDATE shard_walks w
       SET cursor = CASE WHEN ended THEN NULL ELSE v_walk.cursor END,
           walked = CASE WHEN w.cursor IS NULL THEN stepped ELSE w.walked + stepped END,
           kept_back = CASE WHEN w.cursor IS NULL THEN v_back ELSE w.kept_back + v_back END,
           last_copies = CASE WHEN w.cursor IS NULL THEN v_last ELSE w.last_copies + v_last END,
           give_up = CASE WHEN ended THEN 0 ELSE v_walk.give_up END,
           passes = w.passes + ended::integer,
           due_at = CASE WHEN ended THEN clock_timestamp() + make_interval(secs =>
                        CASE w.kind WHEN 'lost' THEN p_lost_again_seconds ELSE p_again_seconds END)
                    ELSE w.due_at END
     WHERE w.shard_id = v_walk.shard_id
    RETURNING w.kept_back INTO v_back;
    IF ended AND at_kind = 'return' THEN
        PERFORM set_shard_state(at_shard, 'active', 'back; its copies count once they are read again', 'holdfast', '');
    ELSIF ended AND at_kind = 'forget' AND v_back = 0 THEN
        PERFORM remove_shard(at_shard, 'holdfast', '');
    END IF;
    RETURN NEXT;
END
$$;

CREATE OR REPLACE FUNCTION walk_replica(p_kind text, p_shard smallint, p_generation uuid, p_blob bigint, p_zones bigint)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_wanted smallint;
BEGIN
    CASE p_kind
        WHEN 'drain' THEN
            PERFORM 1 FROM repair_queue q WHERE q.blob_id = p_blob;
            IF FOUND THEN
                RETURN 'passed';
            END IF;
            PERFORM enqueue_repair(p_blob, 'drain');
            RETURN 'acted';
        WHEN 'lost' THEN
            SELECT b.redundancy INTO v_wanted FROM blobs b WHERE b.id = p_blob;
            IF is_whole(p_blob, v_wanted, p_zones) THEN
                RETURN 'passed';
            END IF;
            PERFORM enqueue_repair(p_blob, 'lost');
            RETURN 'acted';
        WHEN 'return' THEN
            PERFORM 1 FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
            UPDATE replicas r SET state = 'suspect'
              WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.state = 'live';
            RETURN CASE WHEN FOUND THEN 'acted' ELSE 'passed' END;
        ELSE
            SELECT b.redundancy INTO v_wanted FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
            IF NOT FOUND OR NOT is_whole(p_blob, v_wanted, p_zones) THEN
                PERFORM 1 FROM replicas r JOIN shards s ON s.id = r.shard_id AND s.state <> 'lost'
                  WHERE r.blob_id = p_blob AND r.state = 'live';
                RETURN CASE WHEN FOUND THEN 'kept' ELSE 'last' END;
            END IF;
            DELETE FROM replicas r
              WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = p_blob;
            RETURN 'acted';
    END CASE;
END
$$;
