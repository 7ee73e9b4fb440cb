-- Garbage collection, the trash, the primary node and delayed removal: only additions, and functions that do
-- more. The release before this one goes on running: it deletes by delete_item and commits by commit_upload.

ALTER TABLE repositories ADD COLUMN trash boolean NOT NULL DEFAULT true;
ALTER TABLE gc_candidates ADD COLUMN reason text NOT NULL DEFAULT 'released'
    CHECK (reason IN ('released', 'expired', 'missed'));

CREATE TABLE lease (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch        bigint NOT NULL CHECK (epoch > 0),
    holder       text NOT NULL COLLATE "C",
    token        uuid NOT NULL,
    acquired_at  timestamptz NOT NULL,
    renewed_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL
);

CREATE TABLE holds (
    reason       text PRIMARY KEY CHECK (reason IN ('lost_history', 'volume', 'rebuild', 'live_removal', 'operator')),
    detail       text NOT NULL,
    since        timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at  timestamptz,
    released_by  text,
    allowance    bigint NOT NULL DEFAULT 0
);

CREATE TABLE removals (
    shard_id    smallint NOT NULL,
    generation  uuid NOT NULL,
    sha256      bytea NOT NULL CHECK (length(sha256) = 32),
    size        bigint NOT NULL CHECK (size >= 0),
    reason      text NOT NULL CHECK (reason IN ('gc', 'rebalance', 'trim', 'repair', 'scrub', 'reconcile', 'upload')),
    queued_at   timestamptz NOT NULL DEFAULT now(),
    not_before  timestamptz NOT NULL,
    epoch       bigint NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    PRIMARY KEY (shard_id, generation),
    FOREIGN KEY (shard_id, generation) REFERENCES replicas (shard_id, generation)
);
CREATE INDEX removals_due ON removals (shard_id, not_before);

CREATE TABLE trash (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository   text NOT NULL COLLATE "C",
    folder       text NOT NULL COLLATE "C",
    name         text NOT NULL COLLATE "C",
    blob_id      bigint NOT NULL REFERENCES blobs (id),
    created_at   timestamptz NOT NULL,
    created_by   text NOT NULL,
    modified_at  timestamptz NOT NULL,
    modified_by  text NOT NULL,
    properties   jsonb NOT NULL,
    reason       text NOT NULL CHECK (reason IN ('deleted', 'overwritten')),
    trashed_at   timestamptz NOT NULL DEFAULT now(),
    trashed_by   text NOT NULL
);
CREATE INDEX trash_at_path ON trash (repository, folder, name, id);
CREATE INDEX trash_of_blob ON trash (blob_id);

CREATE FUNCTION trash_keeps(p_repo integer)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT r.trash AND coalesce(
               (SELECT (value #>> '{}')::double precision FROM settings WHERE key = 'trash_days'), 14) > 0
      FROM repositories r WHERE r.id = p_repo
$$;

CREATE FUNCTION throw_away(p_repo integer, p_folder text, p_name text, p_principal text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO trash (repository, folder, name, blob_id, created_at, created_by, modified_at, modified_by, properties,
                       reason, trashed_by)
    SELECT r.key, a.folder, a.name, a.blob_id, a.created_at, a.created_by, a.modified_at, a.modified_by, a.properties,
           'overwritten', p_principal
      FROM artifacts a JOIN repositories r ON r.id = a.repo_id
     WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name AND trash_keeps(p_repo);
    RETURN FOUND;
END
$$;

CREATE FUNCTION deletions_held()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM holds WHERE released_at IS NULL)
$$;

CREATE FUNCTION history_is_lost()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM holds WHERE reason = 'lost_history' AND released_at IS NULL)
$$;

CREATE FUNCTION place_hold(p_reason text, p_detail text, p_allowance bigint DEFAULT 0)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO holds AS h (reason, detail, allowance) VALUES (p_reason, p_detail, p_allowance)
    ON CONFLICT (reason) DO UPDATE
       SET detail = excluded.detail, allowance = excluded.allowance, since = clock_timestamp(),
           released_at = NULL, released_by = NULL
     WHERE h.released_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO events (kind, principal, request_id, detail)
    VALUES ('hold', 'holdfast', '', jsonb_build_object('reason', p_reason, 'detail', p_detail));
    RETURN true;
END
$$;

CREATE FUNCTION removal_delay()
RETURNS interval LANGUAGE sql STABLE AS $$
    SELECT make_interval(secs => coalesce(
        (SELECT (value #>> '{}')::double precision FROM settings WHERE key = 'removal_delay_seconds'), 86400))
$$;

CREATE FUNCTION remove_later(
    p_shard smallint, p_generation uuid, p_sha256 bytea, p_reason text, p_size bigint DEFAULT NULL,
    p_delay interval DEFAULT NULL
)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO replicas AS r (shard_id, generation, blob_id, state) VALUES (p_shard, p_generation, NULL, 'condemned')
    ON CONFLICT (shard_id, generation) DO UPDATE SET blob_id = NULL, state = 'condemned'
     WHERE r.state <> 'condemned';
    INSERT INTO removals (shard_id, generation, sha256, size, reason, not_before, epoch)
    VALUES (p_shard, p_generation, p_sha256,
            coalesce(p_size, (SELECT b.size FROM blobs b WHERE b.sha256 = p_sha256), 0), p_reason,
            clock_timestamp() + coalesce(p_delay, removal_delay()), coalesce((SELECT l.epoch FROM lease l), 0))
    ON CONFLICT (shard_id, generation) DO NOTHING;
END
$$;

CREATE FUNCTION remove_unless_live(
    p_shard smallint, p_generation uuid, p_sha256 bytea, p_reason text, p_size bigint DEFAULT NULL,
    p_delay interval DEFAULT NULL
)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO replicas (shard_id, generation, blob_id, state) VALUES (p_shard, p_generation, NULL, 'condemned')
    ON CONFLICT (shard_id, generation) DO NOTHING;
    PERFORM 1 FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.state = 'condemned';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM remove_later(p_shard, p_generation, p_sha256, p_reason, p_size, p_delay);
    RETURN true;
END
$$;

CREATE FUNCTION refuse_revival() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'replica % on shard % is condemned', OLD.generation, OLD.shard_id USING ERRCODE = 'HF004';
END
$$;

CREATE FUNCTION take_out(p_repo integer, p_low text, p_high text, p_max bigint, p_principal text)
RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    v_keep boolean := trash_keeps(p_repo);
    v_rows tid[];
    v_gone bigint;
BEGIN
    v_rows := ARRAY(
        SELECT a.ctid FROM artifacts a
         WHERE a.repo_id = p_repo AND a.folder >= p_low AND a.folder < p_high
         ORDER BY a.folder DESC, a.name DESC LIMIT p_max FOR UPDATE
    );
    WITH gone AS (
        DELETE FROM artifacts a WHERE a.ctid = ANY (v_rows) RETURNING a.*
    ), kept AS (
        INSERT INTO trash (repository, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                           properties, reason, trashed_by)
        SELECT r.key, g.folder, g.name, g.blob_id, g.created_at, g.created_by, g.modified_at, g.modified_by,
               g.properties, 'deleted', p_principal
          FROM gone g JOIN repositories r ON r.id = g.repo_id
         WHERE v_keep AND g.blob_id IS NOT NULL
         ORDER BY g.blob_id
    ), released AS (
        SELECT release_blob(b) FROM (
            SELECT DISTINCT g.blob_id AS b FROM gone g WHERE NOT v_keep AND g.blob_id IS NOT NULL ORDER BY 1
        ) AS distinct_blobs
    )
    SELECT count(*) + 0 * (SELECT count(*) FROM released) INTO v_gone FROM gone;
    RETURN v_gone;
END
$$;

CREATE FUNCTION delete_step(
    p_repo integer, p_folder text, p_name text, p_max bigint, p_principal text, p_request text,
    OUT gone bigint, OUT done boolean
)
LANGUAGE plpgsql AS $$
DECLARE
    v_path    text := concat_ws('/', nullif(p_folder, ''), p_name);
    v_blob    bigint;
    v_keep    boolean;
    v_sha256  bytea;
    v_root    bigint;
BEGIN
    gone := 0;
    done := true;
    SELECT a.blob_id INTO v_blob FROM artifacts a
      WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- What was seen may have changed its kind by now; what has, is not what was asked to be removed.
    IF v_blob IS NOT NULL THEN
        v_keep := trash_keeps(p_repo);
        WITH removed AS (
            DELETE FROM artifacts a
             WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name AND a.blob_id IS NOT NULL
            RETURNING a.*
        ), kept AS (
            INSERT INTO trash (repository, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                               properties, reason, trashed_by)
            SELECT r.key, g.folder, g.name, g.blob_id, g.created_at, g.created_by, g.modified_at, g.modified_by,
                   g.properties, 'deleted', p_principal
              FROM removed g JOIN repositories r ON r.id = g.repo_id WHERE v_keep
        )
        SELECT count(*), max(g.blob_id) INTO gone, v_blob FROM removed g;
        IF gone > 0 AND NOT v_keep THEN
            PERFORM release_blob(v_blob);
        END IF;
    ELSE
        PERFORM pg_advisory_xact_lock(1, p_repo);
        gone := take_out(p_repo, v_path || '/', v_path || '0', p_max, p_principal);
        IF gone < p_max THEN
            -- No folder is called so: control characters are refused.
            gone := gone + take_out(p_repo, v_path, v_path || chr(1), p_max - gone, p_principal);
        END IF;
        done := gone < p_max;
        IF done THEN
            DELETE FROM artifacts a
             WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name AND a.blob_id IS NULL;
            GET DIAGNOSTICS v_root = ROW_COUNT;
            gone := gone + v_root;
        END IF;
    END IF;
    IF gone > 0 THEN
        SELECT b.sha256 INTO v_sha256 FROM blobs b WHERE b.id = v_blob;
        INSERT INTO events (kind, repository, path, sha256, principal, request_id, detail)
        SELECT 'delete', r.key, v_path, v_sha256, p_principal, p_request, jsonb_build_object('items', gone)
          FROM repositories r WHERE r.id = p_repo;
    END IF;
END
$$;

CREATE FUNCTION restore_trash(
    p_trash bigint, p_repo integer, p_folder text, p_name text, p_replace boolean, p_principal text, p_request text
)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_row    trash;
    v_wanted smallint;
    v_old    bigint;
    v_kept   boolean;
    v_key    text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1, p_repo);
    SELECT r.key, r.redundancy INTO v_key, v_wanted FROM repositories r WHERE r.id = p_repo;
    SELECT t.* INTO v_row FROM trash t WHERE t.id = p_trash FOR UPDATE;
    IF NOT FOUND OR v_key IS NULL THEN
        RETURN 'gone';
    END IF;
    PERFORM 1 FROM blobs b WHERE b.id = v_row.blob_id FOR NO KEY UPDATE;
    IF NOT ensure_folder(p_repo, p_folder, p_principal) THEN
        RAISE EXCEPTION 'a parent of % is an artifact', p_name USING ERRCODE = 'HF001';
    END IF;
    LOOP
        INSERT INTO artifacts (repo_id, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                               properties)
        VALUES (p_repo, p_folder, p_name, v_row.blob_id, v_row.created_at, v_row.created_by, v_row.modified_at,
                v_row.modified_by, v_row.properties)
        ON CONFLICT (repo_id, folder, name) DO NOTHING;
        EXIT WHEN FOUND;
        SELECT a.blob_id INTO v_old FROM artifacts a
          WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF v_old IS NULL THEN
            RAISE EXCEPTION '% is a folder', p_name USING ERRCODE = 'HF001';
        END IF;
        IF NOT p_replace THEN
            RETURN 'exists';
        END IF;
        v_kept := throw_away(p_repo, p_folder, p_name, p_principal);
        UPDATE artifacts a
           SET blob_id = v_row.blob_id, created_at = v_row.created_at, created_by = v_row.created_by,
               modified_at = v_row.modified_at, modified_by = v_row.modified_by, updated_at = now(),
               properties = v_row.properties
         WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name;
        IF NOT v_kept THEN
            PERFORM release_blob(v_old);
        END IF;
        EXIT;
    END LOOP;
    UPDATE blobs b SET redundancy = v_wanted WHERE b.id = v_row.blob_id AND b.redundancy < v_wanted;
    IF FOUND THEN
        PERFORM enqueue_repair(v_row.blob_id, 'redundancy');
    END IF;
    DELETE FROM trash WHERE id = p_trash;
    INSERT INTO events (kind, repository, path, sha256, principal, request_id, detail)
    SELECT 'restore', v_key, concat_ws('/', nullif(p_folder, ''), p_name), b.sha256, p_principal, p_request,
           jsonb_build_object('from', concat_ws('/', v_row.repository, nullif(v_row.folder, ''), v_row.name))
      FROM blobs b WHERE b.id = v_row.blob_id;
    RETURN 'restored';
END
$$;

CREATE FUNCTION empty_trash(p_ids bigint[], p_reason text)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_gone bigint;
BEGIN
    WITH gone AS (
        DELETE FROM trash t WHERE t.id = ANY (p_ids) RETURNING t.blob_id
    ), released AS (
        INSERT INTO gc_candidates AS c (blob_id, reason)
        SELECT DISTINCT g.blob_id, p_reason FROM gone g ORDER BY 1
        ON CONFLICT (blob_id) DO UPDATE SET since = now(), reason = excluded.reason
    )
    SELECT count(*) INTO v_gone FROM gone;
    RETURN v_gone;
END
$$;

CREATE FUNCTION lease_acquire(p_node text, p_token uuid, p_known bigint, p_seconds double precision)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_old   bigint;
    v_epoch bigint;
BEGIN
    SELECT l.epoch INTO v_old FROM lease l FOR UPDATE;
    INSERT INTO lease AS l (epoch, holder, token, acquired_at, renewed_at, expires_at)
    VALUES (p_known + 1, p_node, p_token, clock_timestamp(), clock_timestamp(),
            clock_timestamp() + make_interval(secs => p_seconds))
    ON CONFLICT (only_row) DO UPDATE
       SET epoch = greatest(l.epoch, p_known) + 1, holder = excluded.holder, token = excluded.token,
           acquired_at = excluded.acquired_at, renewed_at = excluded.renewed_at, expires_at = excluded.expires_at
     WHERE l.expires_at <= clock_timestamp()
    RETURNING l.epoch INTO v_epoch;
    IF v_epoch IS NULL THEN
        RETURN NULL;
    END IF;
    IF p_known > coalesce(v_old, 0) THEN
        PERFORM place_hold('lost_history', format(
            'a shard knows the primary of epoch %s, this database none after %s', p_known, coalesce(v_old, 0)));
    END IF;
    INSERT INTO events (kind, principal, request_id, detail)
    VALUES ('primary', p_node, '', jsonb_build_object('epoch', v_epoch));
    RETURN v_epoch;
END
$$;

CREATE FUNCTION require_lease(p_epoch bigint, p_token uuid)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM lease l
      WHERE l.epoch = p_epoch AND l.token = p_token AND l.expires_at > clock_timestamp() FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the primary of epoch % is the primary no more', p_epoch USING ERRCODE = 'HF003';
    END IF;
END
$$;

CREATE FUNCTION gc_collect(
    p_epoch bigint, p_token uuid, p_blobs bigint[], p_since timestamptz[], p_grace interval,
    OUT removed_blobs bigint, OUT removed_bytes bigint, OUT removed_files bigint, OUT referenced bigint
)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_locked bigint[];
    v_gone   bigint[];
BEGIN
    PERFORM require_lease(p_epoch, p_token);
    IF deletions_held() THEN
        RAISE EXCEPTION 'deletions are held' USING ERRCODE = 'HF005';
    END IF;
    -- gc waits for nobody: what somebody works with now, or has released anew, is a candidate another time.
    v_locked := ARRAY(
        SELECT b.id FROM unnest(p_blobs, p_since) AS u (blob_id, since)
          JOIN gc_candidates c ON c.blob_id = u.blob_id AND c.since = u.since
          JOIN blobs b ON b.id = c.blob_id
         WHERE c.since <= clock_timestamp() - p_grace
         ORDER BY b.id FOR UPDATE OF c, b SKIP LOCKED
    );
    -- A new statement sees whatever was committed before the locks were had. Nothing can come to refer to
    -- these blobs from here on: every reference takes a lock on the blob.
    v_gone := ARRAY(
        SELECT l.id FROM unnest(v_locked) AS l (id)
         WHERE (SELECT 1 FROM artifacts a WHERE a.blob_id = l.id LIMIT 1) IS NULL
           AND (SELECT 1 FROM trash t WHERE t.blob_id = l.id LIMIT 1) IS NULL
    );
    INSERT INTO events (kind, sha256, principal, request_id, detail)
    SELECT 'gc', b.sha256, 'holdfast', '',
           jsonb_build_object('reason', c.reason, 'since', c.since, 'size', b.size, 'epoch', p_epoch)
      FROM blobs b JOIN gc_candidates c ON c.blob_id = b.id WHERE b.id = ANY (v_gone);
    WITH condemned AS (
        UPDATE replicas r SET blob_id = NULL, state = 'condemned'
          FROM blobs b WHERE b.id = r.blob_id AND r.blob_id = ANY (v_gone)
        RETURNING r.shard_id, r.generation, b.sha256, b.size
    )
    INSERT INTO removals (shard_id, generation, sha256, size, reason, not_before, epoch)
    SELECT c.shard_id, c.generation, c.sha256, c.size, 'gc', clock_timestamp() + removal_delay(), p_epoch
      FROM condemned c;
    GET DIAGNOSTICS removed_files = ROW_COUNT;
    DELETE FROM repair_queue q WHERE q.blob_id = ANY (v_gone);
    DELETE FROM gc_candidates c WHERE c.blob_id = ANY (v_locked);
    WITH gone AS (
        DELETE FROM blobs b WHERE b.id = ANY (v_gone) RETURNING b.size
    )
    SELECT count(*), coalesce(sum(g.size), 0) INTO removed_blobs, removed_bytes FROM gone g;
    referenced := cardinality(v_locked) - removed_blobs;
END
$$;

CREATE FUNCTION gc_feed(p_epoch bigint, p_token uuid, p_after bigint, p_max integer, OUT last bigint, OUT missed bigint)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    v_page bigint[];
BEGIN
    PERFORM require_lease(p_epoch, p_token);
    v_page := ARRAY(SELECT b.id FROM blobs b WHERE b.id > p_after ORDER BY b.id LIMIT p_max);
    INSERT INTO gc_candidates (blob_id, reason)
    SELECT p.id, 'missed' FROM unnest(v_page) AS p (id)
     WHERE (SELECT 1 FROM artifacts a WHERE a.blob_id = p.id LIMIT 1) IS NULL
       AND (SELECT 1 FROM trash t WHERE t.blob_id = p.id LIMIT 1) IS NULL
       AND (SELECT 1 FROM gc_candidates c WHERE c.blob_id = p.id) IS NULL
     ORDER BY p.id
    ON CONFLICT (blob_id) DO NOTHING;
    GET DIAGNOSTICS missed = ROW_COUNT;
    last := v_page[cardinality(v_page)];
END
$$;

CREATE TRIGGER replicas_stay_condemned BEFORE UPDATE ON replicas
    FOR EACH ROW WHEN (OLD.state = 'condemned' AND NEW.state <> 'condemned') EXECUTE FUNCTION refuse_revival();

CREATE OR REPLACE FUNCTION release_blob(p_blob bigint)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO gc_candidates (blob_id) VALUES (p_blob)
    ON CONFLICT (blob_id) DO UPDATE SET since = now(), reason = excluded.reason
$$;

CREATE OR REPLACE FUNCTION delete_item(
    p_repo integer, p_folder text, p_name text, p_principal text, p_request text
)
RETURNS bigint LANGUAGE sql AS $$
    SELECT d.gone FROM delete_step(p_repo, p_folder, p_name, 1000000000, p_principal, p_request) d
$$;

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
    v_old       bigint;
    v_kept      boolean;
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
        -- Where N has to rise the stronger lock comes first: two who share one would wait for each other.
        PERFORM 1 FROM blobs b WHERE b.sha256 = p_sha256 AND b.redundancy < p_redundancy FOR NO KEY UPDATE;
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
        UPDATE blobs b SET redundancy = v_wanted WHERE b.id = v_blob AND b.redundancy < v_wanted;
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

    IF NOT ensure_folder(p_repo, p_folder, p_principal) THEN
        RAISE EXCEPTION 'a parent of % is an artifact', p_name USING ERRCODE = 'HF001';
    END IF;
    LOOP
        INSERT INTO artifacts (repo_id, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                               updated_at, properties)
        VALUES (p_repo, p_folder, p_name, v_blob, v_at, p_principal, p_started, p_principal, v_at, p_properties)
        ON CONFLICT (repo_id, folder, name) DO NOTHING;
        EXIT WHEN FOUND;
        -- Known only once it is locked: of two first uploads of a path, the second releases the first one's blob.
        SELECT a.blob_id INTO v_old FROM artifacts a
          WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF v_old IS NULL THEN
            RAISE EXCEPTION '% is a folder', p_name USING ERRCODE = 'HF001';
        END IF;
        IF v_old <> v_blob THEN
            v_kept := throw_away(p_repo, p_folder, p_name, p_principal);
        END IF;
        UPDATE artifacts a
           SET blob_id = v_blob, created_at = v_at, created_by = p_principal, modified_at = p_started,
               modified_by = p_principal, updated_at = v_at, properties = p_properties
         WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name;
        EXIT;
    END LOOP;
    IF v_old <> v_blob AND NOT v_kept THEN
        PERFORM release_blob(v_old);
    END IF;
    IF NOT v_adopt THEN
        UPDATE events SET adopted = false WHERE id = v_event;
    END IF;
    created_at := v_at;
    outcome := CASE WHEN v_adopt THEN 'adopted' ELSE 'deduplicated' END;
END
$$;
