-- The store heals itself: jobs, a repair queue with claims, walks over shards and blobs, verdicts, removals.

-- How each job of each node stands, kept up by its runner. A run answers the requests made until it began
-- (answering), and has answered them when it is over.
CREATE TABLE jobs (
    node_id       text NOT NULL REFERENCES nodes (id),
    job           text NOT NULL COLLATE "C",
    state         text NOT NULL CHECK (state IN ('running', 'idle', 'failed', 'disabled')),
    done          bigint NOT NULL DEFAULT 0,
    total         bigint,
    moved_bytes   bigint NOT NULL DEFAULT 0,
    seconds_left  double precision,
    last_error    text,
    started_at    timestamptz,
    finished_at   timestamptz,
    requested_at  timestamptz,
    answering     timestamptz,
    answered_at   timestamptz,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (node_id, job)
);

-- Walks over all replicas of a shard whose state calls for it, in bounded steps that any node takes:
-- 'lost' and 'drain' ask for repairs, 'return' doubts the replicas of a shard that comes back, 'forget' drops
-- those of one that never will.
CREATE TABLE shard_walks (
    shard_id    smallint PRIMARY KEY REFERENCES shards (id),
    kind        text NOT NULL CHECK (kind IN ('lost', 'drain', 'return', 'forget')),
    cursor      uuid,
    walked      bigint NOT NULL DEFAULT 0,
    kept_back   bigint NOT NULL DEFAULT 0,
    passes      integer NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz NOT NULL DEFAULT now()
);

-- The walk over all blobs that finds out how many copies each should have. Each change that may raise
-- the number adds to asked; a pass serves what was asked before it began.
CREATE TABLE census (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cursor      bigint NOT NULL DEFAULT 0,
    asked       bigint NOT NULL DEFAULT 1,
    serving     bigint NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now()
);

-- How far each job has walked over the replicas of a shard, and for which ring.
CREATE TABLE shard_cursors (
    shard_id     smallint NOT NULL REFERENCES shards (id),
    job          text NOT NULL COLLATE "C",
    cursor       uuid,
    ring         text NOT NULL DEFAULT '',
    finished_at  timestamptz,
    PRIMARY KEY (shard_id, job)
);

INSERT INTO census DEFAULT VALUES;

ALTER TABLE shards
    ADD COLUMN state_since timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN state_reason text NOT NULL DEFAULT '',
    ADD COLUMN replaced boolean NOT NULL DEFAULT false,
    ADD COLUMN weight_set boolean NOT NULL DEFAULT false;
ALTER TABLE shard_space ADD COLUMN silent_since timestamptz;
ALTER TABLE repair_queue
    DROP CONSTRAINT repair_queue_reason_check,
    ADD CONSTRAINT repair_queue_reason_check CHECK (reason IN ('short_write', 'suspect', 'redundancy', 'missing', 'corrupt', 'lost',
        'drain', 'census', 'misplaced')),
    ADD COLUMN urgency smallint NOT NULL DEFAULT 1,
    ADD COLUMN due_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN renewed_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN claim uuid,
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN outcome text,
    ADD COLUMN size bigint NOT NULL DEFAULT 0;
CREATE INDEX repair_queue_order ON repair_queue (urgency, due_at);

-- Which replicas make up a blob's N: live, on a shard that stays. A node that is merely down keeps its copies, so
-- that its restart starts no repairs; up tells whether one can be read now. A draining shard is read, not counted.
CREATE FUNCTION homes(p_blob bigint)
RETURNS TABLE (shard_id smallint, generation uuid, zone text, up boolean)
LANGUAGE sql STABLE AS $$
    SELECT r.shard_id, r.generation, n.zone, s.state <> 'offline' AND node_is_up(n)
      FROM replicas r
      JOIN shards s ON s.id = r.shard_id AND s.state IN ('active', 'read_only', 'offline')
      JOIN nodes n ON n.id = s.node_id
     WHERE r.blob_id = p_blob AND r.state = 'live'
$$;

-- Zones with a member of the ring.
CREATE FUNCTION ring_zones()
RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT count(DISTINCT n.zone) FROM shards s JOIN nodes n ON n.id = s.node_id
     WHERE s.state IN ('active', 'read_only', 'offline')
$$;

-- Whether a blob has the copies it should have, in the zones it should be in, readable or not.
CREATE FUNCTION is_whole(p_blob bigint, p_redundancy smallint, p_ring_zones bigint)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT count(DISTINCT h.shard_id) >= p_redundancy AND count(DISTINCT h.zone) >= least(p_redundancy, p_ring_zones)
      FROM homes(p_blob) h
$$;

CREATE FUNCTION repair_urgency(p_blob bigint)
RETURNS smallint LANGUAGE sql STABLE AS $$
    SELECT CASE count(DISTINCT g.shard_id) WHEN 0 THEN 99 ELSE count(DISTINCT g.shard_id) END::smallint
      FROM good_replicas(p_blob) g
$$;

CREATE OR REPLACE FUNCTION enqueue_repair(p_blob bigint, p_reason text)
RETURNS void LANGUAGE sql AS $$
    -- The lock keeps gc from taking the blob away between this look and the foreign key's.
    INSERT INTO repair_queue AS q (blob_id, reason, urgency, size)
    SELECT b.id, p_reason, repair_urgency(b.id), b.size FROM blobs b WHERE b.id = p_blob FOR KEY SHARE
    ON CONFLICT (blob_id) DO UPDATE
       SET urgency = excluded.urgency, renewed_at = clock_timestamp(),
           due_at = CASE WHEN q.claim IS NULL THEN least(q.due_at, clock_timestamp()) ELSE q.due_at END
$$;

-- Claim up to p_count blobs, or p_bytes of them but always one, for p_seconds: fewest good copies first, those
-- without any last. A claim is committed at once; who does not come back in time loses it to the next.
CREATE FUNCTION claim_repairs(p_claim uuid, p_seconds double precision, p_count integer, p_bytes bigint)
RETURNS TABLE (blob_id bigint, uid uuid, sha256 bytea, size bigint, redundancy smallint, first_digests bytea,
               urgency smallint, attempts integer, renewed_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_urgency smallint;
    v_row     record;
    v_count   integer := 0;
    v_bytes   bigint := 0;
BEGIN
    FOREACH v_urgency IN ARRAY ARRAY[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 99] LOOP
        FOR v_row IN
            SELECT q.blob_id, b.uid, b.sha256, b.size, b.redundancy,
                   substring(b.block_digests FROM 1 FOR 512) AS first_digests, q.attempts, q.renewed_at
              FROM repair_queue q JOIN blobs b ON b.id = q.blob_id
             WHERE q.urgency = v_urgency AND q.due_at <= clock_timestamp()
             ORDER BY q.due_at LIMIT p_count - v_count FOR NO KEY UPDATE OF q SKIP LOCKED
        LOOP
            EXIT WHEN v_count > 0 AND v_bytes + v_row.size > p_bytes;
            v_count := v_count + 1;
            v_bytes := v_bytes + v_row.size;
            UPDATE repair_queue q
               SET claim = p_claim, due_at = clock_timestamp() + make_interval(secs => p_seconds)
             WHERE q.blob_id = v_row.blob_id;
            blob_id := v_row.blob_id;
            uid := v_row.uid;
            sha256 := v_row.sha256;
            size := v_row.size;
            redundancy := v_row.redundancy;
            first_digests := v_row.first_digests;
            urgency := v_urgency;
            attempts := v_row.attempts;
            renewed_at := v_row.renewed_at;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN v_count >= p_count OR v_bytes >= p_bytes;
    END LOOP;
END
$$;

-- End the repair of one blob: give it those of the new copies it still lacks, and take it off the queue when it
-- is whole. Lock, count anew in the next statement, act. adopted are the copies that are the blob's now (also
-- those of an earlier call whose answer was lost); the others were not needed and their writer removes them.
--
-- Outcomes: 'gone' (no such blob), 'whole', 'waiting' (all copies are there, but some cannot be read now: only time
-- or a verdict helps), 'short' (copies are missing). A row that is not removed is due again after p_retry_seconds,
-- or now where somebody asked anew since the claim.
CREATE FUNCTION settle_repair(
    p_blob bigint, p_claim uuid, p_renewed timestamptz, p_shards smallint[], p_generations uuid[],
    p_retry_seconds double precision, p_note text,
    OUT adopted uuid[], OUT outcome text
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_wanted smallint;
    v_size   bigint;
    v_sha256 bytea;
    v_zones  bigint;
    v_good   bigint;
    v_spread bigint;
    v_copy   record;
BEGIN
    adopted := '{}';
    SELECT b.redundancy, b.size, b.sha256 INTO v_wanted, v_size, v_sha256
      FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        outcome := 'gone';
        RETURN;
    END IF;
    v_zones := least(v_wanted, ring_zones());
    FOR v_copy IN SELECT u.shard_id, u.generation FROM unnest(p_shards, p_generations) AS u (shard_id, generation) LOOP
        IF adopt_replica(p_blob, v_wanted, v_zones, v_copy.shard_id, v_copy.generation) THEN
            adopted := adopted || v_copy.generation;
        END IF;
    END LOOP;

    SELECT count(DISTINCT h.shard_id), count(DISTINCT h.zone) INTO v_good, v_spread FROM homes(p_blob) h WHERE h.up;
    IF v_size = 0 OR (v_good >= v_wanted AND v_spread >= v_zones) THEN
        outcome := 'whole';
        PERFORM remove_later(r.shard_id, r.generation, v_sha256, 'rebalance')
           FROM replicas r JOIN shards s ON s.id = r.shard_id AND s.state = 'draining'
          WHERE r.blob_id = p_blob AND r.state = 'live' AND NOT deletions_held();
        DELETE FROM repair_queue q WHERE q.blob_id = p_blob AND q.renewed_at = p_renewed;
    ELSIF is_whole(p_blob, v_wanted, v_zones) THEN
        outcome := 'waiting';
    ELSE
        outcome := 'short';
    END IF;
    UPDATE repair_queue q
       SET claim = NULL, urgency = repair_urgency(p_blob), outcome = concat_ws(': ', settle_repair.outcome, p_note),
           attempts = CASE WHEN cardinality(settle_repair.adopted) > 0 THEN 0 ELSE q.attempts + 1 END,
           due_at = CASE WHEN q.renewed_at = p_renewed THEN clock_timestamp() + make_interval(secs => p_retry_seconds)
                         ELSE clock_timestamp() END
     WHERE q.blob_id = p_blob AND q.claim = p_claim;
END
$$;

-- End the repairs of several blobs, in the order of their digests: one commit for a batch. The new copies are given
-- as one list, each with its blob.
CREATE FUNCTION settle_repairs(
    p_claim uuid, p_blobs bigint[], p_renewed timestamptz[], p_retry_seconds double precision[], p_notes text[],
    p_of bigint[], p_shards smallint[], p_generations uuid[]
)
RETURNS TABLE (blob_id bigint, adopted uuid[], outcome text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_one         record;
    v_shards      smallint[];
    v_generations uuid[];
    v_end         record;
BEGIN
    FOR v_one IN
        SELECT u.blob, u.renewed, u.retry, u.note
          FROM unnest(p_blobs, p_renewed, p_retry_seconds, p_notes) AS u (blob, renewed, retry, note)
          LEFT JOIN blobs b ON b.id = u.blob ORDER BY b.sha256
    LOOP
        SELECT coalesce(array_agg(c.shard_id ORDER BY c.n), '{}'), coalesce(array_agg(c.generation ORDER BY c.n), '{}')
          INTO v_shards, v_generations
          FROM unnest(p_of, p_shards, p_generations) WITH ORDINALITY AS c (blob, shard_id, generation, n)
         WHERE c.blob = v_one.blob;
        SELECT s.adopted, s.outcome INTO v_end
          FROM settle_repair(v_one.blob, p_claim, v_one.renewed, v_shards, v_generations, v_one.retry, v_one.note) s;
        blob_id := v_one.blob;
        adopted := v_end.adopted;
        outcome := v_end.outcome;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Insert one new copy if the blob still lacks it: on a shard of its own that takes writes, and either a copy too
-- few or a zone too few. The caller has locked the blob's row.
CREATE FUNCTION adopt_replica(
    p_blob bigint, p_redundancy smallint, p_zones bigint, p_shard smallint, p_generation uuid
)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_zone   text;
    v_copies bigint;
    v_spread bigint;
    v_here   boolean;
    v_new    boolean;
BEGIN
    PERFORM 1 FROM replicas r
      WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = p_blob;
    IF FOUND THEN
        RETURN true;
    END IF;
    SELECT n.zone INTO v_zone FROM shards s JOIN nodes n ON n.id = s.node_id
      WHERE s.id = p_shard AND s.state = 'active';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT count(DISTINCT h.shard_id), count(DISTINCT h.zone), coalesce(bool_or(h.shard_id = p_shard), false),
           NOT coalesce(bool_or(h.zone = v_zone), false)
      INTO v_copies, v_spread, v_here, v_new FROM homes(p_blob) h;
    IF v_here OR NOT (v_copies < p_redundancy OR (v_new AND v_spread < p_zones)) THEN
        RETURN false;
    END IF;
    -- A condemned generation is there already: reconcile took the file while we were slow.
    INSERT INTO replicas (shard_id, generation, blob_id) VALUES (p_shard, p_generation, p_blob)
    ON CONFLICT (shard_id, generation) DO NOTHING;
    RETURN FOUND;
END
$$;

-- Drop one live replica that the blob can do without: by the copies that can be read now, N in their zones must be
-- left. False, and nothing is done, otherwise.
CREATE FUNCTION trim_replica(p_blob bigint, p_shard smallint, p_generation uuid, p_reason text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_wanted smallint;
    v_sha256 bytea;
    v_good   bigint;
    v_spread bigint;
BEGIN
    SELECT b.redundancy, b.sha256 INTO v_wanted, v_sha256 FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM replicas r
      WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = p_blob AND r.state = 'live';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT count(DISTINCT h.shard_id), count(DISTINCT h.zone) INTO v_good, v_spread
      FROM homes(p_blob) h WHERE h.up AND (h.shard_id, h.generation) <> (p_shard, p_generation);
    IF v_good < v_wanted OR v_spread < least(v_wanted, ring_zones()) OR deletions_held() THEN
        RETURN false;
    END IF;
    PERFORM remove_later(p_shard, p_generation, v_sha256, p_reason);
    RETURN true;
END
$$;

-- Flip a misplaced replica to its copy on the shard the ring wants. Outcomes: 'moved'; 'copied' (the copy is the
-- blob's now, but the old one is still needed); 'surplus' (the copy is not needed: its writer removes it).
CREATE FUNCTION move_replica(
    p_blob bigint, p_from smallint, p_old uuid, p_to smallint, p_new uuid
)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'surplus';
    END IF;
    PERFORM 1 FROM replicas r WHERE r.shard_id = p_to AND r.generation = p_new AND r.blob_id = p_blob;
    IF NOT FOUND THEN
        PERFORM 1 FROM replicas r
          WHERE r.shard_id = p_from AND r.generation = p_old AND r.blob_id = p_blob AND r.state = 'live';
        IF NOT FOUND
           OR EXISTS (SELECT 1 FROM homes(p_blob) h WHERE h.shard_id = p_to)
           OR NOT EXISTS (SELECT 1 FROM shards s WHERE s.id = p_to AND s.state = 'active') THEN
            RETURN 'surplus';
        END IF;
        INSERT INTO replicas (shard_id, generation, blob_id) VALUES (p_to, p_new, p_blob)
        ON CONFLICT (shard_id, generation) DO NOTHING;
        IF NOT FOUND THEN
            RETURN 'surplus';
        END IF;
    END IF;
    RETURN CASE WHEN trim_replica(p_blob, p_from, p_old, 'rebalance') THEN 'moved' ELSE 'copied' END;
END
$$;

-- Set a shard's state, start the walk it calls for, and note who did it and why. False where it is so already.
CREATE FUNCTION set_shard_state(p_shard smallint, p_state text, p_reason text, p_principal text, p_request text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_before text;
BEGIN
    SELECT s.state INTO v_before FROM shards s WHERE s.id = p_shard FOR NO KEY UPDATE;
    IF NOT FOUND OR v_before = p_state THEN
        RETURN false;
    END IF;
    UPDATE shards SET state = p_state, state_since = clock_timestamp(), state_reason = p_reason WHERE id = p_shard;
    DELETE FROM shard_walks w WHERE w.shard_id = p_shard;
    IF p_state IN ('lost', 'draining') THEN
        INSERT INTO shard_walks (shard_id, kind)
        VALUES (p_shard, CASE p_state WHEN 'lost' THEN 'lost' ELSE 'drain' END);
    END IF;
    INSERT INTO events (kind, principal, request_id, detail)
    VALUES ('shard_state', p_principal, p_request, jsonb_build_object(
        'shard', p_shard, 'before', v_before, 'state', p_state, 'reason', p_reason));
    RETURN true;
END
$$;

-- What an administrator asks of a shard: 'drain', 'readonly', 'activate', 'replace'. Outcomes: 'done'; 'unchanged';
-- 'absent'; 'lost' (a lost shard can only come back, be replaced or be removed); 'replaced' (another disk has its
-- place); 'returning' (a walk doubts its copies, then it is active).
CREATE FUNCTION change_shard(p_shard smallint, p_action text, p_principal text, p_request text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_state    text;
    v_replaced boolean;
BEGIN
    SELECT s.state, s.replaced INTO v_state, v_replaced FROM shards s WHERE s.id = p_shard FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'absent';
    ELSIF p_action = 'replace' THEN
        UPDATE shards s SET replaced = true WHERE s.id = p_shard;
        PERFORM set_shard_state(p_shard, 'lost', 'replaced by another disk', p_principal, p_request);
        RETURN CASE WHEN v_replaced THEN 'unchanged' ELSE 'done' END;
    ELSIF v_state <> 'lost' THEN
        RETURN CASE WHEN set_shard_state(p_shard, CASE p_action WHEN 'drain' THEN 'draining'
                                                                WHEN 'readonly' THEN 'read_only' ELSE 'active' END,
                                         'by an administrator', p_principal, p_request)
               THEN 'done' ELSE 'unchanged' END;
    ELSIF p_action <> 'activate' THEN
        RETURN 'lost';
    ELSIF v_replaced THEN
        RETURN 'replaced';
    END IF;
    INSERT INTO shard_walks AS w (shard_id, kind) VALUES (p_shard, 'return')
    ON CONFLICT (shard_id) DO UPDATE
       SET kind = 'return', cursor = NULL, walked = 0, kept_back = 0, passes = 0, due_at = now(), started_at = now()
     WHERE w.kind <> 'return';
    INSERT INTO events (kind, principal, request_id, detail)
    VALUES ('shard_return', p_principal, p_request, jsonb_build_object('shard', p_shard));
    RETURN 'returning';
END
$$;

-- Remove a node that is down and has no shard left. Outcomes: 'absent', 'up', 'has_shards', 'removed'.
CREATE FUNCTION remove_node(p_node text, p_principal text, p_request text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_up boolean;
BEGIN
    SELECT node_is_up(n) INTO v_up FROM nodes n WHERE n.id = p_node FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'absent';
    ELSIF v_up THEN
        RETURN 'up';
    ELSIF EXISTS (SELECT 1 FROM shards s WHERE s.node_id = p_node) THEN
        RETURN 'has_shards';
    END IF;
    DELETE FROM jobs j WHERE j.node_id = p_node;
    DELETE FROM nodes n WHERE n.id = p_node;
    INSERT INTO events (kind, principal, request_id, detail)
    VALUES ('node_remove', p_principal, p_request, jsonb_build_object('node', p_node));
    RETURN 'removed';
END
$$;

-- Remove a shard for good. Outcomes: 'absent'; 'in_use' (a living node has it open); 'not_drained' (neither draining
-- nor lost); 'holds' (copies are still on it); 'forgetting' (it is lost: a walk drops the copies that have been made
-- good elsewhere, and then the shard); 'removed'.
CREATE FUNCTION remove_shard(p_shard smallint, p_principal text, p_request text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_state text;
    v_used  boolean;
BEGIN
    SELECT s.state, EXISTS (SELECT 1 FROM nodes n
                             WHERE n.id = s.node_id AND n.incarnation = s.owner AND node_is_up(n))
      INTO v_state, v_used FROM shards s WHERE s.id = p_shard FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'absent';
    ELSIF v_state NOT IN ('draining', 'lost') THEN
        RETURN 'not_drained';
    ELSIF v_used THEN
        RETURN 'in_use';
    END IF;
    PERFORM 1 FROM replicas r WHERE r.shard_id = p_shard AND r.blob_id IS NOT NULL LIMIT 1;
    IF FOUND AND v_state = 'draining' THEN
        RETURN 'holds';
    ELSIF FOUND THEN
        INSERT INTO shard_walks AS w (shard_id, kind) VALUES (p_shard, 'forget')
        ON CONFLICT (shard_id) DO UPDATE
           SET kind = 'forget', cursor = NULL, walked = 0, kept_back = 0, passes = 0, due_at = now(), started_at = now()
         WHERE w.kind <> 'forget';
        RETURN 'forgetting';
    END IF;
    DELETE FROM removals r WHERE r.shard_id = p_shard;
    DELETE FROM replicas r WHERE r.shard_id = p_shard;
    DELETE FROM shard_walks w WHERE w.shard_id = p_shard;
    DELETE FROM shard_cursors c WHERE c.shard_id = p_shard;
    DELETE FROM shard_space f WHERE f.shard_id = p_shard;
    DELETE FROM shards s WHERE s.id = p_shard;
    INSERT INTO events (kind, principal, request_id, detail)
    VALUES ('shard_remove', p_principal, p_request, jsonb_build_object('shard', p_shard));
    RETURN 'removed';
END
$$;

-- Take one step of the walk that is due: at most p_count replicas. Nothing is returned when none is due.
CREATE FUNCTION walk_shard(p_count integer, p_again_seconds double precision, p_lost_again_seconds double precision)
RETURNS TABLE (at_shard smallint, at_kind text, stepped bigint, acted bigint, ended boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_walk  shard_walks;
    v_zones bigint := ring_zones();
    v_row   record;
    v_back  bigint := 0;
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
                ELSE NULL;
            END CASE;
        END IF;
    END LOOP;
    ended := stepped < p_count;
    UPDATE shard_walks w
       SET cursor = CASE WHEN ended THEN NULL ELSE v_walk.cursor END,
           walked = CASE WHEN w.cursor IS NULL THEN stepped ELSE w.walked + stepped END,
           kept_back = CASE WHEN w.cursor IS NULL THEN v_back ELSE w.kept_back + v_back END,
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

-- What a walk does with one replica: 'acted', 'kept' (it is still needed), or 'passed'.
CREATE FUNCTION walk_replica(p_kind text, p_shard smallint, p_generation uuid, p_blob bigint, p_zones bigint)
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
                RETURN 'kept';
            END IF;
            DELETE FROM replicas r
              WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = p_blob;
            RETURN 'acted';
    END CASE;
END
$$;

CREATE FUNCTION ask_census() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE census SET asked = asked + 1, due_at = least(due_at, clock_timestamp());
    RETURN NULL;
END
$$;
CREATE TRIGGER settings_counted AFTER INSERT OR UPDATE ON settings
    FOR EACH ROW WHEN (NEW.key = 'redundancy') EXECUTE FUNCTION ask_census();
CREATE TRIGGER repositories_counted AFTER UPDATE OF redundancy ON repositories
    FOR EACH ROW EXECUTE FUNCTION ask_census();
-- A further zone asks for copies in it; one less, for fewer zones.
CREATE TRIGGER shards_counted AFTER INSERT OR DELETE OR UPDATE OF state ON shards
    FOR EACH ROW EXECUTE FUNCTION ask_census();

-- Take one step of the census: at most p_count blobs. N of a blob is the largest among the repositories that refer
-- to it and the cluster's; what nothing refers to keeps its own until gc decides. Nothing is returned when no pass
-- is due.
CREATE FUNCTION take_census(p_count integer, p_redundancy smallint, p_period_seconds double precision)
RETURNS TABLE (counted bigint, queued bigint, at_blob bigint, last_blob bigint, ended boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_census  census;
    v_ids     bigint[];
    v_changed bigint[];
    v_short   bigint;
    v_zones   bigint := ring_zones();
BEGIN
    SELECT c.* INTO v_census FROM census c
     WHERE c.due_at <= clock_timestamp() FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_census.cursor = 0 THEN
        v_census.serving := v_census.asked;
    END IF;
    SELECT array_agg(s.id) INTO v_ids FROM (
        SELECT b.id FROM blobs b WHERE b.id > v_census.cursor AND b.size > 0 ORDER BY b.id LIMIT p_count
    ) AS s;
    counted := coalesce(cardinality(v_ids), 0);

    SELECT array_agg(b.id ORDER BY b.sha256) INTO v_changed FROM blobs b
      WHERE b.id = ANY (v_ids) AND b.redundancy <> wanted_redundancy(b.id, b.redundancy, p_redundancy);
    IF v_changed IS NOT NULL THEN
        -- Lock in digest order; what each should have is worked out after that, in a statement of its own.
        PERFORM 1 FROM blobs b WHERE b.id = ANY (v_changed) ORDER BY b.sha256 FOR NO KEY UPDATE;
        UPDATE blobs b SET redundancy = wanted_redundancy(b.id, b.redundancy, p_redundancy)
          WHERE b.id = ANY (v_changed);
    END IF;
    queued := 0;
    FOR v_short IN
        SELECT b.id FROM blobs b
         WHERE b.id = ANY (v_ids) AND NOT is_whole(b.id, b.redundancy, v_zones) ORDER BY b.sha256
    LOOP
        PERFORM 1 FROM artifacts a WHERE a.blob_id = v_short LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        PERFORM enqueue_repair(v_short, CASE WHEN v_short = ANY (v_changed) THEN 'redundancy' ELSE 'census' END);
        queued := queued + 1;
    END LOOP;

    ended := counted < p_count;
    at_blob := v_ids[cardinality(v_ids)];
    UPDATE census c
       SET cursor = CASE WHEN ended THEN 0 ELSE at_blob END, serving = v_census.serving,
           due_at = CASE WHEN ended AND c.asked = v_census.serving
                         THEN clock_timestamp() + make_interval(secs => p_period_seconds) ELSE c.due_at END;
    SELECT coalesce(max(b.id), 0) INTO last_blob FROM blobs b;
    RETURN NEXT;
END
$$;

CREATE FUNCTION wanted_redundancy(p_blob bigint, p_now smallint, p_cluster smallint)
RETURNS smallint LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN count(*) = 0 THEN p_now ELSE greatest(p_cluster, max(r.redundancy)) END
      FROM (SELECT DISTINCT a.repo_id FROM artifacts a WHERE a.blob_id = p_blob) AS used
      JOIN repositories r ON r.id = used.repo_id
$$;

-- Declare lost the shards that have been silent for p_seconds: not reported by any node, or as a disk without an
-- answer. The
-- caller is the primary node and has been it without a gap for as long. All or nothing: not when more than one zone
-- is silent or not yet made good again, not for half the shards or more.
CREATE FUNCTION declare_lost(p_seconds double precision, p_principal text, OUT declared smallint[], OUT refused text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_silent smallint[];
    v_zones  text[];
    v_gone   bigint;
    v_all    bigint;
BEGIN
    declared := '{}';
    -- One verdict at a time: two at once would each see the other's zone as whole.
    PERFORM pg_advisory_xact_lock(3, 0);
    SELECT array_agg(s.id ORDER BY s.id) INTO v_silent FROM shards s
      LEFT JOIN shard_space f ON f.shard_id = s.id
     WHERE s.state IN ('active', 'read_only', 'draining')
       AND least(coalesce(f.reported_at, s.created_at), f.silent_since)
           < clock_timestamp() - make_interval(secs => p_seconds);
    IF v_silent IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(DISTINCT n.zone ORDER BY n.zone) INTO v_zones FROM shards s JOIN nodes n ON n.id = s.node_id
     WHERE s.id = ANY (v_silent)
        OR (s.state = 'lost' AND (EXISTS (SELECT 1 FROM repair_queue q WHERE q.reason = 'lost')
                                  OR EXISTS (SELECT 1 FROM shard_walks w WHERE w.shard_id = s.id AND w.passes = 0)));
    SELECT count(*) FILTER (WHERE s.id = ANY (v_silent) OR s.state = 'lost'), count(*)
      INTO v_gone, v_all FROM shards s;
    IF cardinality(v_zones) > 1 THEN
        refused := format('shards %s are silent, and zones %s would not be whole: a verdict takes one zone at most',
                          array_to_string(v_silent, ', '), array_to_string(v_zones, ', '));
    ELSIF 2 * v_gone >= v_all THEN
        refused := format('shards %s are silent: %s of %s shards would be lost, and a verdict takes less than half',
                          array_to_string(v_silent, ', '), v_gone, v_all);
    ELSE
        declared := v_silent;
        PERFORM set_shard_state(d, 'lost', format('verdict: silent for more than %s s', p_seconds), p_principal, '')
           FROM unnest(v_silent) AS d;
    END IF;
END
$$;

-- Let shards that a verdict took, and that their owners report again, come back: their copies are doubted first, and
-- count once they have been read. What an administrator declared lost, only an administrator brings back.
CREATE FUNCTION return_shards()
RETURNS smallint[] LANGUAGE sql AS $$
    WITH back AS (
        UPDATE shard_walks w
           SET kind = 'return', cursor = NULL, walked = 0, kept_back = 0, passes = 0, due_at = now(), started_at = now()
          FROM shards s
          JOIN nodes n ON n.id = s.node_id AND n.incarnation = s.owner AND node_is_up(n)
          JOIN shard_space f ON f.shard_id = s.id AND f.silent_since IS NULL AND f.reported_at > s.state_since
         WHERE w.shard_id = s.id AND w.kind = 'lost' AND s.state = 'lost' AND s.state_reason LIKE 'verdict: %'
        RETURNING w.shard_id
    )
    SELECT coalesce(array_agg(b.shard_id ORDER BY b.shard_id), '{}') FROM back b
$$;

-- A disk that does not answer is reported with no capacity: since when, whoever reports it.
CREATE FUNCTION note_silence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.silent_since := CASE
        WHEN NEW.capacity_bytes > 0 THEN NULL
        WHEN TG_OP = 'UPDATE' AND OLD.silent_since IS NOT NULL THEN OLD.silent_since
        ELSE clock_timestamp()
    END;
    RETURN NEW;
END
$$;
CREATE TRIGGER shard_space_silence BEFORE INSERT OR UPDATE ON shard_space
    FOR EACH ROW EXECUTE FUNCTION note_silence();
