-- Content that is known is deployed by its checksum alone, whichever of the three. Repositories say which digests are
-- computed of what is uploaded to them.

ALTER TABLE blobs ALTER COLUMN sha1 DROP NOT NULL, ALTER COLUMN md5 DROP NOT NULL;
CREATE INDEX blobs_sha1 ON blobs USING hash (sha1);
CREATE INDEX blobs_md5 ON blobs USING hash (md5);

ALTER TABLE repositories
    ADD COLUMN digests text[] NOT NULL DEFAULT '{sha256,sha1,md5}'
        CHECK (digests @> '{sha256}' AND digests <@ '{sha256,sha1,md5}');

-- Let an artifact refer to a blob that the caller has locked; what it overwrites goes to the trash, or its blob is
-- released. SQLSTATE HF001: a folder is where the artifact should be, or the other way round.
CREATE FUNCTION put_artifact(
    p_repo integer, p_folder text, p_name text, p_blob bigint, p_properties jsonb, p_principal text,
    p_started timestamptz, p_at timestamptz
)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_old  bigint;
    v_kept boolean;
BEGIN
    IF NOT ensure_folder(p_repo, p_folder, p_principal) THEN
        RAISE EXCEPTION 'a parent of % is an artifact', p_name USING ERRCODE = 'HF001';
    END IF;
    LOOP
        INSERT INTO artifacts (repo_id, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                               updated_at, properties)
        VALUES (p_repo, p_folder, p_name, p_blob, p_at, p_principal, p_started, p_principal, p_at, p_properties)
        ON CONFLICT (repo_id, folder, name) DO NOTHING;
        EXIT WHEN FOUND;
        -- Known only once it is locked: of two first uploads of a path, the second releases the first one's blob.
        SELECT a.blob_id INTO v_old FROM artifacts a
          WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF v_old IS NULL THEN
            RAISE EXCEPTION '% is a folder', p_name USING ERRCODE = 'HF001';
        END IF;
        IF v_old <> p_blob THEN
            v_kept := throw_away(p_repo, p_folder, p_name, p_principal);
        END IF;
        UPDATE artifacts a
           SET blob_id = p_blob, created_at = p_at, created_by = p_principal, modified_at = p_started,
               modified_by = p_principal, updated_at = p_at, properties = p_properties
         WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name;
        EXIT;
    END LOOP;
    IF v_old <> p_blob AND NOT v_kept THEN
        PERFORM release_blob(v_old);
    END IF;
END
$$;

-- Commit one upload that brought its bytes. Each statement sees a fresh
-- snapshot (READ COMMITTED), which the loop below and the counting after the lock rely on.
--
-- Outcomes: 'adopted' (our replicas are now the blob's), 'deduplicated' (the confirmed ones suffice,
-- ours may be deleted), 'confirm' (content is known and p_confirmed is NULL: nothing was done; ask
-- the shards of the replicas returned and call again), 'too_old', 'no_repository'. SQLSTATE HF001: a
-- folder is where the artifact should be, or the other way round; HF001 and 23505 (a generation was
-- condemned before it was committed) leave nothing behind.
CREATE OR REPLACE FUNCTION commit_upload(
    p_upload       uuid,
    p_started      timestamptz,
    p_age_max      interval,
    p_repo         integer,
    p_folder       text,
    p_name         text,
    p_properties   jsonb,
    p_principal    text,
    p_request      text,
    p_uid          uuid,
    p_sha256       bytea,
    p_sha1         bytea,
    p_md5          bytea,
    p_size         bigint,
    p_blocks       bytea,
    p_redundancy   smallint,
    p_shards       smallint[],
    p_generations  uuid[],
    p_short        boolean,
    p_confirmed    uuid[],
    OUT outcome              text,
    OUT created_at           timestamptz,
    OUT existing_shards      smallint[],
    OUT existing_generations uuid[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_blob      bigint;
    v_known     boolean;
    v_wanted    smallint;
    v_confirmed smallint[];
    v_short     boolean;
    v_adopt     boolean;
    v_key       text;
    v_event     bigint;
    v_at        timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1, p_repo);
    SELECT r.key INTO v_key FROM repositories r WHERE r.id = p_repo;
    IF FOUND THEN
        INSERT INTO events AS e (kind, upload_id, repository, path, sha256, adopted, principal, request_id)
        VALUES ('deploy', p_upload, v_key, concat_ws('/', nullif(p_folder, ''), p_name), p_sha256, true,
                p_principal, p_request)
        ON CONFLICT (upload_id) DO NOTHING
        RETURNING e.id, e.at INTO v_event, v_at;
    END IF;
    IF v_event IS NULL THEN
        -- Done before, though the repository be gone by now: what was adopted then is still referred to.
        -- Written, though nothing changes, so that this answer too waits for a synchronous standby.
        UPDATE events e SET adopted = e.adopted WHERE e.upload_id = p_upload
        RETURNING CASE WHEN e.adopted THEN 'adopted' ELSE 'deduplicated' END, e.at INTO outcome, created_at;
        outcome := coalesce(outcome, 'no_repository');
        RETURN;
    END IF;
    IF p_started < clock_timestamp() - p_age_max THEN
        DELETE FROM events WHERE id = v_event;
        outcome := 'too_old';
        RETURN;
    END IF;

    LOOP
        INSERT INTO blobs AS b (uid, sha256, sha1, md5, size, redundancy, block_digests)
        VALUES (p_uid, p_sha256, p_sha1, p_md5, p_size, p_redundancy, p_blocks)
        ON CONFLICT (sha256) DO NOTHING
        RETURNING b.id INTO v_blob;
        v_known := v_blob IS NULL;
        EXIT WHEN NOT v_known;
        -- Where the row has to change the stronger lock comes first: two who share one would wait for each other.
        PERFORM 1 FROM blobs b
          WHERE b.sha256 = p_sha256
            AND (b.redundancy < p_redundancy OR (b.sha1 IS NULL AND p_sha1 IS NOT NULL)
                 OR (b.md5 IS NULL AND p_md5 IS NOT NULL))
          FOR NO KEY UPDATE;
        SELECT b.id, greatest(b.redundancy, p_redundancy) INTO v_blob, v_wanted
          FROM blobs b WHERE b.sha256 = p_sha256 FOR SHARE;
        EXIT WHEN FOUND;
    END LOOP;

    IF v_known AND p_confirmed IS NULL AND p_size > 0 THEN
        SELECT array_agg(g.shard_id), array_agg(g.generation)
          INTO existing_shards, existing_generations FROM good_replicas(v_blob) g;
        IF existing_shards IS NOT NULL THEN
            DELETE FROM events WHERE id = v_event;
            outcome := 'confirm';
            RETURN;
        END IF;
    END IF;

    IF v_known THEN
        UPDATE blobs b
           SET redundancy = v_wanted, sha1 = coalesce(b.sha1, p_sha1), md5 = coalesce(b.md5, p_md5)
         WHERE b.id = v_blob
           AND (b.redundancy < v_wanted OR (b.sha1 IS NULL AND p_sha1 IS NOT NULL)
                OR (b.md5 IS NULL AND p_md5 IS NOT NULL));
        SELECT coalesce(array_agg(DISTINCT g.shard_id), '{}') INTO v_confirmed
          FROM good_replicas(v_blob) g WHERE g.generation = ANY (coalesce(p_confirmed, '{}'));
        v_short := p_size > 0 AND cardinality(v_confirmed) < v_wanted;
        -- Ours on shards that hold a confirmed copy would add no safety, at each upload while a node is away.
        -- After a failover that went back in time no row can be trusted to know which files will stay.
        v_adopt := (v_short AND NOT p_shards <@ v_confirmed) OR (p_size > 0 AND history_is_lost());
    ELSE
        v_short := p_short;
        v_adopt := true;
    END IF;
    IF v_adopt THEN
        INSERT INTO replicas (shard_id, generation, blob_id)
        SELECT u.shard_id, u.generation, v_blob FROM unnest(p_shards, p_generations) AS u (shard_id, generation);
    END IF;
    IF v_short THEN
        PERFORM enqueue_repair(v_blob, 'short_write');
    END IF;

    PERFORM put_artifact(p_repo, p_folder, p_name, v_blob, p_properties, p_principal, p_started, v_at);
    IF NOT v_adopt THEN
        UPDATE events SET adopted = false WHERE id = v_event;
    END IF;
    created_at := v_at;
    outcome := CASE WHEN v_adopt THEN 'adopted' ELSE 'deduplicated' END;
END
$$;

-- Commit one upload of known content, without bytes. Like commit_upload it may be repeated with the same p_upload, and
-- each statement sees a fresh snapshot. p_confirmed are the generations whose shards said, during this request, that
-- the file is there; of these so many copies and zones must still be good, or the bytes are wanted.
--
-- Outcomes: 'linked', 'unknown' (the blob is gone, or has too few copies: nothing was done), 'no_repository'. HF001 as
-- in put_artifact.
CREATE FUNCTION deploy_known(
    p_upload      uuid,
    p_started     timestamptz,
    p_repo        integer,
    p_folder      text,
    p_name        text,
    p_properties  jsonb,
    p_principal   text,
    p_request     text,
    p_blob        bigint,
    p_redundancy  smallint,
    p_confirmed   uuid[],
    p_copies_min  smallint,
    p_zones_min   smallint,
    OUT outcome    text,
    OUT created_at timestamptz
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_key     text;
    v_sha256  bytea;
    v_size    bigint;
    v_wanted  smallint;
    v_copies  bigint;
    v_zones   bigint;
    v_refusal text;
    v_event   bigint;
    v_at      timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1, p_repo);
    SELECT r.key INTO v_key FROM repositories r WHERE r.id = p_repo;
    -- Where N has to rise the stronger lock comes first: two who share one would wait for each other.
    PERFORM 1 FROM blobs b WHERE b.id = p_blob AND b.redundancy < p_redundancy FOR NO KEY UPDATE;
    -- gc, which locks the row alone, has taken the blob away by now, or will find the new reference.
    SELECT b.sha256, b.size, greatest(b.redundancy, p_redundancy) INTO v_sha256, v_size, v_wanted
      FROM blobs b WHERE b.id = p_blob FOR SHARE;
    SELECT count(DISTINCT g.shard_id), count(DISTINCT g.zone) INTO v_copies, v_zones
      FROM good_replicas(p_blob) g WHERE g.generation = ANY (p_confirmed);
    -- After a failover that went back in time no row can be trusted to know which files will stay.
    v_refusal := CASE WHEN v_key IS NULL THEN 'no_repository'
                      WHEN v_size = 0 THEN NULL
                      WHEN v_size IS NULL OR v_copies < p_copies_min OR v_zones < p_zones_min THEN 'unknown'
                      WHEN history_is_lost() THEN 'unknown' END;
    INSERT INTO events AS e (kind, upload_id, repository, path, sha256, adopted, principal, request_id)
    SELECT 'deploy', p_upload, v_key, concat_ws('/', nullif(p_folder, ''), p_name), v_sha256, false, p_principal,
           p_request
     WHERE v_refusal IS NULL
    ON CONFLICT (upload_id) DO NOTHING
    RETURNING e.id, e.at INTO v_event, v_at;
    IF v_event IS NULL THEN
        -- Done before, whatever holds by now. Written, though nothing changes, so that this answer too waits for a
        -- synchronous standby.
        UPDATE events e SET adopted = e.adopted WHERE e.upload_id = p_upload RETURNING 'linked', e.at
          INTO outcome, created_at;
        outcome := coalesce(outcome, v_refusal);
        RETURN;
    END IF;
    UPDATE blobs b SET redundancy = v_wanted WHERE b.id = p_blob AND b.redundancy < v_wanted;
    IF v_size > 0 AND v_copies < v_wanted THEN
        PERFORM enqueue_repair(p_blob, 'short_write');
    END IF;
    PERFORM put_artifact(p_repo, p_folder, p_name, p_blob, p_properties, p_principal, p_started, v_at);
    created_at := v_at;
    outcome := 'linked';
END
$$;
