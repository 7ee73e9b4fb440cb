ALTER TABLE repair_queue DROP CONSTRAINT repair_queue_reason_check;
ALTER TABLE repair_queue ADD CONSTRAINT repair_queue_reason_check
    CHECK (reason IN ('short_write', 'suspect', 'redundancy', 'corrupt', 'missing'));

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
CREATE INDEX quarantine_unmoved ON quarantine (shard_id) WHERE moved_at IS NULL;
CREATE INDEX replicas_suspect ON replicas (shard_id, generation) WHERE state = 'suspect';

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
