-- Repairs of a batch are settled together, and no plan depends on statistics that a new table lacks.
-- The census remembers whether it was repeated, for uploads committed with the redundancy of before.

-- A blob's live replicas, wherever they are. OFFSET keeps the planner from joining inside: as long as a new table has no
-- statistics, it would read a shard's whole index to find the few rows of one blob.
CREATE FUNCTION live_replicas(p_blob bigint)
RETURNS TABLE (shard_id smallint, generation uuid)
LANGUAGE sql STABLE AS $$
    SELECT r.shard_id, r.generation FROM replicas r WHERE r.blob_id = p_blob AND r.state = 'live' OFFSET 0
$$;

CREATE OR REPLACE FUNCTION good_replicas(p_blob bigint)
RETURNS TABLE (shard_id smallint, generation uuid, zone text)
LANGUAGE sql STABLE AS $$
    SELECT r.shard_id, r.generation, n.zone
      FROM live_replicas(p_blob) r
      JOIN shards s ON s.id = r.shard_id AND s.state NOT IN ('offline', 'lost')
      JOIN nodes n ON n.id = s.node_id AND node_is_up(n)
$$;

CREATE OR REPLACE FUNCTION homes(p_blob bigint)
RETURNS TABLE (shard_id smallint, generation uuid, zone text, up boolean)
LANGUAGE sql STABLE AS $$
    SELECT r.shard_id, r.generation, n.zone, s.state <> 'offline' AND node_is_up(n)
      FROM live_replicas(p_blob) r
      JOIN shards s ON s.id = r.shard_id AND s.state IN ('active', 'read_only', 'offline')
      JOIN nodes n ON n.id = s.node_id
$$;

-- End the repairs of a batch: give each blob those of the new copies (p_of, p_shards, p_generations) it still lacks,
-- and take it off the queue when it is whole. Lock, count anew in the next statement, act; blobs are taken together,
-- their copies one round after the other, so that each sees those before it. adopted are the copies that are the
-- blob's now (also those of an earlier call whose answer was lost); the others were not needed and their writer
-- removes them.
--
-- Outcomes: 'gone' (no such blob), 'whole', 'waiting' (all copies are there, but some cannot be read now: only time
-- or a verdict helps), 'short' (copies are missing). A row that is not removed is due again after its
-- p_retry_seconds, or now where somebody asked anew since the claim.
CREATE OR REPLACE FUNCTION settle_repairs(
    p_claim uuid, p_blobs bigint[], p_renewed timestamptz[], p_retry_seconds double precision[], p_notes text[],
    p_of bigint[], p_shards smallint[], p_generations uuid[]
)
RETURNS TABLE (blob_id bigint, adopted uuid[], outcome text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_zones    bigint;
    v_outcomes text[];
    v_round    integer := 0;
    v_more     boolean;
BEGIN
    PERFORM 1 FROM blobs b WHERE b.id = ANY (p_blobs) ORDER BY b.sha256 FOR NO KEY UPDATE;
    v_zones := ring_zones();
    LOOP
        v_round := v_round + 1;
        SELECT count(*) >= v_round INTO v_more
          FROM unnest(p_of) AS c (blob) GROUP BY c.blob ORDER BY 1 DESC LIMIT 1;
        EXIT WHEN v_more IS NOT TRUE;
        PERFORM adopt_replicas(v_round, v_zones, p_of, p_shards, p_generations);
    END LOOP;

    SELECT array_agg(CASE
               WHEN b.id IS NULL THEN 'gone'
               WHEN b.size = 0 OR (h.good >= b.redundancy AND h.good_zones >= least(b.redundancy, v_zones)) THEN 'whole'
               WHEN h.copies >= b.redundancy AND h.zones >= least(b.redundancy, v_zones) THEN 'waiting'
               ELSE 'short'
           END ORDER BY u.n)
      INTO v_outcomes
      FROM unnest(p_blobs) WITH ORDINALITY AS u (blob, n)
      LEFT JOIN blobs b ON b.id = u.blob
     CROSS JOIN LATERAL (
           SELECT count(DISTINCT h.shard_id) AS copies, count(DISTINCT h.zone) AS zones,
                  count(DISTINCT h.shard_id) FILTER (WHERE h.up) AS good,
                  count(DISTINCT h.zone) FILTER (WHERE h.up) AS good_zones
             FROM homes(u.blob) h) AS h;
    PERFORM remove_later(r.shard_id, r.generation, b.sha256, 'rebalance')
       FROM unnest(p_blobs, v_outcomes) AS u (blob, outcome)
       JOIN blobs b ON b.id = u.blob
       JOIN replicas r ON r.blob_id = u.blob AND r.state = 'live'
       JOIN shards s ON s.id = r.shard_id AND s.state = 'draining'
      WHERE u.outcome = 'whole' AND NOT deletions_held();
    DELETE FROM repair_queue q
     USING unnest(p_blobs, p_renewed, v_outcomes) AS u (blob, renewed, outcome)
     WHERE q.blob_id = ANY (p_blobs) AND q.blob_id = u.blob AND q.renewed_at = u.renewed AND u.outcome = 'whole';
    UPDATE repair_queue q
       SET claim = NULL, urgency = repair_urgency(q.blob_id), outcome = concat_ws(': ', u.outcome, u.note),
           attempts = CASE WHEN EXISTS (
                               SELECT 1 FROM unnest(p_of, p_shards, p_generations) AS c (blob, shard_id, generation)
                                 JOIN replicas r ON r.shard_id = c.shard_id AND r.generation = c.generation
                                WHERE c.blob = q.blob_id AND r.blob_id = c.blob)
                           THEN 0 ELSE q.attempts + 1 END,
           due_at = CASE WHEN q.renewed_at = u.renewed THEN clock_timestamp() + make_interval(secs => u.retry)
                         ELSE clock_timestamp() END
      FROM unnest(p_blobs, p_renewed, p_retry_seconds, p_notes, v_outcomes) AS u (blob, renewed, retry, note, outcome)
     WHERE q.blob_id = ANY (p_blobs) AND q.blob_id = u.blob AND q.claim = p_claim;
    RETURN QUERY
        SELECT u.blob, coalesce(a.generations, '{}'), u.outcome
          FROM unnest(p_blobs, v_outcomes) AS u (blob, outcome)
          LEFT JOIN (
               SELECT c.blob, array_agg(c.generation) AS generations
                 FROM unnest(p_of, p_shards, p_generations) AS c (blob, shard_id, generation)
                 JOIN replicas r ON r.shard_id = c.shard_id AND r.generation = c.generation AND r.blob_id = c.blob
                GROUP BY c.blob) AS a ON a.blob = u.blob;
END
$$;

-- Insert of each blob its new copy number p_round, if the blob still lacks it: on a shard of its own that takes
-- writes, and either a copy too few or a zone too few. The caller has locked the blobs' rows.
CREATE FUNCTION adopt_replicas(
    p_round integer, p_zones bigint, p_of bigint[], p_shards smallint[], p_generations uuid[]
)
RETURNS void LANGUAGE sql AS $$
    -- A condemned generation is there already: reconcile took the file while we were slow.
    INSERT INTO replicas (shard_id, generation, blob_id)
    SELECT c.shard_id, c.generation, c.blob
      FROM (SELECT u.blob, u.shard_id, u.generation, row_number() OVER (PARTITION BY u.blob ORDER BY u.n) AS round
              FROM unnest(p_of, p_shards, p_generations) WITH ORDINALITY AS u (blob, shard_id, generation, n)) AS c
      JOIN blobs b ON b.id = c.blob
      JOIN shards s ON s.id = c.shard_id AND s.state = 'active'
      JOIN nodes n ON n.id = s.node_id
     CROSS JOIN LATERAL (
           SELECT count(DISTINCT h.shard_id) AS copies, count(DISTINCT h.zone) AS zones,
                  coalesce(bool_or(h.shard_id = c.shard_id), false) AS is_here,
                  coalesce(bool_or(h.zone = n.zone), false) AS knows_zone
             FROM homes(c.blob) h) AS h
     WHERE c.round = p_round AND NOT h.is_here
       AND (h.copies < b.redundancy OR (NOT h.knows_zone AND h.zones < least(b.redundancy, p_zones)))
    ON CONFLICT (shard_id, generation) DO NOTHING
$$;

DROP FUNCTION settle_repair(bigint, uuid, timestamptz, smallint[], uuid[], double precision, text);
DROP FUNCTION adopt_replica(bigint, smallint, bigint, smallint, uuid);

ALTER TABLE census ADD COLUMN repeated bigint NOT NULL DEFAULT 0;
