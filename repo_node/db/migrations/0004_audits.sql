-- The owners of shards judge their replicas, re-read them and compare shards with rows.

-- ---------------------------------------------------------------- what the shards' owners found

-- How far each pass over a shard has come. Replicas older than covered_since have been read since then.
CREATE TABLE scrubs (
    shard_id        smallint NOT NULL REFERENCES shards (id),
    kind            text NOT NULL CHECK (kind IN ('blocks', 'proof')),
    started_at      timestamptz NOT NULL DEFAULT now(),
    position        uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    done_replicas   bigint NOT NULL DEFAULT 0,
    done_bytes      bigint NOT NULL DEFAULT 0,
    total_replicas  bigint,
    total_bytes     bigint,
    finished_at     timestamptz,
    covered_since   timestamptz,
    PRIMARY KEY (shard_id, kind)
);

-- Files that are to be, or have been (moved_at), moved to a shard's quarantine; each has a condemned
-- replica. Written before the file moves, so that whoever dies in between leaves the order behind.
CREATE TABLE quarantine (
    shard_id      smallint NOT NULL REFERENCES shards (id),
    generation    uuid NOT NULL,
    sha256        bytea NOT NULL CHECK (length(sha256) = 32),
    size          bigint,
    reason        text NOT NULL CHECK (reason IN ('bytes', 'size', 'unreadable', 'stray')),
    condemned_at  timestamptz NOT NULL DEFAULT now(),
    moved_at      timestamptz,
    PRIMARY KEY (shard_id, generation)
);
CREATE INDEX quarantine_by_age ON quarantine (shard_id, moved_at);
CREATE INDEX replicas_suspect ON replicas (shard_id, generation) WHERE state = 'suspect';

-- Things on a shard that no row knows, by their path and inode, and since when they have been seen there.
CREATE TABLE sightings (
    shard_id       smallint NOT NULL REFERENCES shards (id),
    path           bytea NOT NULL,
    inode          bigint NOT NULL,
    first_seen_at  timestamptz NOT NULL DEFAULT now(),
    last_seen_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard_id, path)
);

-- Comparisons of a shard's files with the rows: asked for, under way, done. The shard's owner does them,
-- in the order of their ids; whoever restarts begins the one it was at anew.
CREATE TABLE checks (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request       uuid NOT NULL,
    shard_id      smallint NOT NULL REFERENCES shards (id),
    dry_run       boolean NOT NULL DEFAULT false,
    repair        boolean NOT NULL DEFAULT false,
    rebuild       boolean NOT NULL DEFAULT false,
    principal     text NOT NULL,
    requested_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at    timestamptz,
    finished_at   timestamptz,
    done          bigint NOT NULL DEFAULT 0,
    total         bigint,
    report        jsonb,
    error         text
);
CREATE INDEX checks_of_shard ON checks (shard_id, id);
CREATE INDEX checks_of_request ON checks (request);

-- Backups of this database that nodes have written to shards of their own.
CREATE TABLE backups (
    shard_id  smallint NOT NULL REFERENCES shards (id),
    name      text NOT NULL,
    bytes     bigint NOT NULL,
    taken_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard_id, name)
);


-- The owner read a replica again and found it right: it counts again.
CREATE FUNCTION reinstate_replica(p_shard smallint, p_generation uuid)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE replicas r SET state = 'live'
     WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.state = 'suspect';
    RETURN FOUND;
END
$$;

-- The owner proved a replica by its sha256, so the block digests that it contradicts are wrong.
CREATE FUNCTION correct_block_digests(p_shard smallint, p_generation uuid, p_blocks bytea)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_blob   bigint;
    v_sha256 bytea;
BEGIN
    SELECT r.blob_id INTO v_blob FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation;
    SELECT b.sha256 INTO v_sha256 FROM blobs b WHERE b.id = v_blob FOR NO KEY UPDATE;
    PERFORM 1 FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = v_blob;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE blobs b SET block_digests = p_blocks WHERE b.id = v_blob AND b.block_digests <> p_blocks;
    IF FOUND THEN
        INSERT INTO events (kind, sha256, principal, request_id, detail)
        VALUES ('digests', v_sha256, 'holdfast', '',
                jsonb_build_object('shard', p_shard, 'generation', p_generation));
    END IF;
    UPDATE replicas r SET state = 'live'
     WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.state = 'suspect';
    RETURN true;
END
$$;

-- The owner proved a replica bad. 'condemned': another good copy exists, so this one is the blob's no
-- more and its file may go to quarantine; 'last': there is none, so it is only marked suspect; 'gone':
-- it is not the blob's any more.
CREATE FUNCTION condemn_replica(p_shard smallint, p_generation uuid, p_reason text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_blob   bigint;
    v_sha256 bytea;
    v_size   bigint;
BEGIN
    SELECT r.blob_id INTO v_blob FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation;
    SELECT b.sha256, b.size INTO v_sha256, v_size FROM blobs b WHERE b.id = v_blob FOR NO KEY UPDATE;
    -- Suspect first: it is known to be bad, whatever becomes of it.
    UPDATE replicas r SET state = 'suspect'
     WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = v_blob;
    IF NOT FOUND THEN
        RETURN 'gone';
    END IF;
    PERFORM enqueue_repair(v_blob, 'corrupt');
    PERFORM 1 FROM good_replicas(v_blob);
    IF NOT FOUND THEN
        RETURN 'last';
    END IF;
    INSERT INTO quarantine (shard_id, generation, sha256, size, reason)
    VALUES (p_shard, p_generation, v_sha256, v_size, p_reason);
    UPDATE replicas r SET state = 'condemned', blob_id = NULL
     WHERE r.shard_id = p_shard AND r.generation = p_generation;
    INSERT INTO events (kind, sha256, principal, request_id, detail)
    VALUES ('quarantine', v_sha256, 'holdfast', '',
            jsonb_build_object('shard', p_shard, 'generation', p_generation, 'reason', p_reason));
    RETURN 'condemned';
END
$$;

-- The owner looked, on an intact shard, and these files are not there. Their rows go where the blob has
-- another good copy; the others are marked suspect, in case the file is found again. Returns how many
-- of each; whatever is no longer some blob's is neither.
CREATE FUNCTION drop_absent_replicas(
    p_shard smallint, p_generations uuid[], OUT dropped bigint, OUT kept bigint
)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM blobs b
      WHERE b.id IN (SELECT r.blob_id FROM replicas r WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations))
      ORDER BY b.sha256 FOR NO KEY UPDATE;
    -- All of them first: of two copies of a blob that are absent together, neither vouches for the other.
    UPDATE replicas r SET state = 'suspect'
     WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations) AND r.state = 'live';
    PERFORM enqueue_repair(g.blob_id, 'missing') FROM (
        SELECT DISTINCT r.blob_id FROM replicas r
         WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations) AND r.state = 'suspect' ORDER BY 1
    ) AS g;
    DELETE FROM replicas r
     WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations) AND r.state = 'suspect'
       AND EXISTS (SELECT 1 FROM good_replicas(r.blob_id));
    GET DIAGNOSTICS dropped = ROW_COUNT;
    SELECT count(*) INTO kept FROM replicas r
     WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations) AND r.state = 'suspect';
    IF dropped > 0 THEN
        INSERT INTO events (kind, principal, request_id, detail)
        VALUES ('absent', 'holdfast', '',
                jsonb_build_object('shard', p_shard, 'dropped', dropped, 'generations', p_generations));
    END IF;
END
$$;

-- Whether files that no row knows must stay: after history was lost they may be all that is left of it.
CREATE FUNCTION strays_are_held()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT deletions_held()
$$;

-- Whether rows may be made from files: in a database restored from a backup, until deletions are released.
CREATE FUNCTION rebuild_is_on()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM holds WHERE reason = 'rebuild' AND released_at IS NULL)
$$;

-- Make rows of a file that its shard's owner found and read whole. 'adopted': the blob is known, and has one
-- copy more; 'found': nothing was known of it; 'refused': the file has a row, be it a condemned one, or no
-- rebuild is on. A blob that nothing refers to becomes a candidate of gc, which is held meanwhile.
CREATE FUNCTION adopt_found(
    p_shard smallint, p_generation uuid, p_uid uuid, p_sha256 bytea, p_sha1 bytea, p_md5 bytea, p_size bigint,
    p_blocks bytea, p_redundancy smallint
)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_blob bigint;
    v_new  boolean;
BEGIN
    IF NOT rebuild_is_on()
       OR EXISTS (SELECT 1 FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation) THEN
        RETURN 'refused';
    END IF;
    LOOP
        INSERT INTO blobs AS b (uid, sha256, sha1, md5, size, redundancy, block_digests)
        VALUES (p_uid, p_sha256, p_sha1, p_md5, p_size, p_redundancy, p_blocks)
        ON CONFLICT (sha256) DO NOTHING
        RETURNING b.id INTO v_blob;
        v_new := v_blob IS NOT NULL;
        EXIT WHEN v_new;
        SELECT b.id INTO v_blob FROM blobs b WHERE b.sha256 = p_sha256 FOR SHARE;
        EXIT WHEN FOUND;
    END LOOP;
    INSERT INTO replicas (shard_id, generation, blob_id) VALUES (p_shard, p_generation, v_blob)
    ON CONFLICT (shard_id, generation) DO NOTHING;
    IF v_new THEN
        PERFORM release_blob(v_blob);
        INSERT INTO events (kind, sha256, principal, request_id, detail)
        VALUES ('found', p_sha256, 'holdfast', '',
                jsonb_build_object('shard', p_shard, 'generation', p_generation, 'size', p_size));
    END IF;
    -- No repair yet: its other copies may be found next. The census looks when the rebuild is over.
    RETURN CASE WHEN v_new THEN 'found' ELSE 'adopted' END;
END
$$;

-- Condemn files that no row knows, by their keys: a late commit that would refer to one conflicts with it.
-- Returns those that were condemned; whatever has got a row by now is not.
CREATE FUNCTION condemn_strays(p_shard smallint, p_generations uuid[], p_sha256 bytea[], p_sizes bigint[])
RETURNS SETOF uuid LANGUAGE plpgsql AS $$
DECLARE
    v_condemned uuid[];
BEGIN
    IF strays_are_held() THEN
        RETURN;
    END IF;
    WITH condemned AS (
        INSERT INTO replicas AS r (shard_id, generation, state)
        SELECT p_shard, f.generation, 'condemned' FROM unnest(p_generations) AS f (generation)
         ORDER BY f.generation
        ON CONFLICT (shard_id, generation) DO NOTHING
        RETURNING r.generation
    )
    SELECT coalesce(array_agg(c.generation), '{}') INTO v_condemned FROM condemned c;
    INSERT INTO quarantine (shard_id, generation, sha256, size, reason)
    SELECT p_shard, f.generation, f.sha256, f.size, 'stray'
      FROM unnest(p_generations, p_sha256, p_sizes) AS f (generation, sha256, size)
     WHERE f.generation = ANY (v_condemned);
    INSERT INTO events (kind, sha256, principal, request_id, detail)
    SELECT 'quarantine', f.sha256, 'holdfast', '',
           jsonb_build_object('shard', p_shard, 'generation', f.generation, 'reason', 'stray')
      FROM unnest(p_generations, p_sha256) AS f (generation, sha256) WHERE f.generation = ANY (v_condemned);
    RETURN QUERY SELECT unnest(v_condemned);
END
$$;

-- Remove a shard for good. Outcomes: 'absent'; 'in_use' (a living node has it open); 'not_drained' (neither draining
-- nor lost); 'holds' (copies are still on it); 'forgetting' (it is lost: a walk drops the copies that have been made
-- good elsewhere, and then the shard); 'removed'.
CREATE OR REPLACE FUNCTION remove_shard(p_shard smallint, p_principal text, p_request text)
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
    DELETE FROM scrubs p WHERE p.shard_id = p_shard;
    DELETE FROM backups b WHERE b.shard_id = p_shard;
    DELETE FROM sightings s WHERE s.shard_id = p_shard;
    DELETE FROM checks c WHERE c.shard_id = p_shard;
    DELETE FROM quarantine q WHERE q.shard_id = p_shard;
    DELETE FROM shard_space f WHERE f.shard_id = p_shard;
    DELETE FROM shards s WHERE s.id = p_shard;
    INSERT INTO events (kind, principal, request_id, detail)
    VALUES ('shard_remove', p_principal, p_request, jsonb_build_object('shard', p_shard));
    RETURN 'removed';
END
$$;
