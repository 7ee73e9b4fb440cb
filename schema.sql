-- Holdfast's schema: the truth for a new database. Numbered migrations in repo_node/db/migrations
-- bring an old one here, and a test proves both equal. Times are the database's own; digests are
-- bytea; internal ids are small integers; foreign keys never cascade.

-- ---------------------------------------------------------------- the cluster

CREATE TABLE schema_migrations (
    version     integer PRIMARY KEY,
    name        text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE cluster (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cluster_id  uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE settings (
    key         text PRIMARY KEY,
    value       jsonb NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    updated_by  text NOT NULL
);

CREATE TABLE nodes (
    id            text PRIMARY KEY COLLATE "C",
    zone          text NOT NULL COLLATE "C",
    url           text NOT NULL,
    internal_url  text NOT NULL,
    version       text NOT NULL,
    incarnation   uuid NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at  timestamptz NOT NULL DEFAULT now(),
    stopped_at    timestamptz
);

-- weight and state belong to the administrator; a shard row is never deleted while replicas refer to it.
CREATE TABLE shards (
    id          smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uid         uuid NOT NULL UNIQUE,
    node_id     text NOT NULL REFERENCES nodes (id),
    path        text NOT NULL,
    weight      double precision NOT NULL DEFAULT 1 CHECK (weight > 0),
    state       text NOT NULL DEFAULT 'active'
                CHECK (state IN ('active', 'read_only', 'draining', 'offline', 'lost')),
    owner       uuid,
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- Apart from shards, because every new replica locks its shard's row against deletion and this row
-- changes at each heartbeat.
CREATE TABLE shard_space (
    shard_id        smallint PRIMARY KEY REFERENCES shards (id),
    capacity_bytes  bigint NOT NULL,
    free_bytes      bigint NOT NULL,
    writable        boolean NOT NULL,
    reported_at     timestamptz NOT NULL DEFAULT now()
);

-- ---------------------------------------------------------------- people and what they may do

CREATE TABLE users (
    id             integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text NOT NULL UNIQUE COLLATE "C",
    password_hash  text NOT NULL,
    is_admin       boolean NOT NULL DEFAULT false,
    is_enabled     boolean NOT NULL DEFAULT true,
    created_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tokens (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id       integer NOT NULL REFERENCES users (id),
    secret_sha256 bytea NOT NULL UNIQUE CHECK (length(secret_sha256) = 32),
    ending        text NOT NULL,
    description   text NOT NULL,
    scopes        text[] NOT NULL CHECK (cardinality(scopes) > 0),
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_at    timestamptz
);

-- ---------------------------------------------------------------- content

CREATE TABLE repositories (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key           text NOT NULL UNIQUE COLLATE "C",
    rclass        text NOT NULL DEFAULT 'local' CHECK (rclass IN ('local')),
    package_type  text NOT NULL DEFAULT 'generic' CHECK (package_type IN ('generic')),
    description   text NOT NULL DEFAULT '',
    redundancy    smallint CHECK (redundancy BETWEEN 1 AND 16),
    created_at    timestamptz NOT NULL DEFAULT now(),
    created_by    text NOT NULL
);

CREATE TABLE blobs (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uid            uuid NOT NULL,
    sha256         bytea NOT NULL UNIQUE CHECK (length(sha256) = 32),
    sha1           bytea NOT NULL CHECK (length(sha1) = 20),
    md5            bytea NOT NULL CHECK (length(md5) = 16),
    size           bigint NOT NULL CHECK (size >= 0),
    redundancy     smallint NOT NULL CHECK (redundancy BETWEEN 1 AND 16),
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- xxh3-64 of every 1 MiB block; stored plainly so that a range reads only its slice.
    block_digests  bytea NOT NULL,
    CONSTRAINT blobs_block_digests_fit CHECK (length(block_digests) = 8 * ((size + 1048575) / 1048576))
);
ALTER TABLE blobs ALTER COLUMN block_digests SET STORAGE EXTERNAL;

-- One row for each file. Never unique on blob and shard: a move has two for a moment.
-- A condemned row has no blob: it keeps a late commit from referring to a file that reconcile took away.
CREATE TABLE replicas (
    shard_id    smallint NOT NULL REFERENCES shards (id),
    generation  uuid NOT NULL,
    blob_id     bigint REFERENCES blobs (id),
    state       text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'suspect', 'condemned')),
    PRIMARY KEY (shard_id, generation),
    CONSTRAINT replicas_condemned_have_no_blob CHECK ((blob_id IS NULL) = (state = 'condemned'))
);
CREATE INDEX replicas_of_blob ON replicas (blob_id) WHERE blob_id IS NOT NULL;

-- A row with a blob is an artifact, a row without one a folder; one unique index keeps a file and a
-- folder from having the same path. folder is '' at the root of the repository.
CREATE TABLE artifacts (
    repo_id      integer NOT NULL REFERENCES repositories (id),
    folder       text NOT NULL COLLATE "C",
    name         text NOT NULL COLLATE "C",
    blob_id      bigint REFERENCES blobs (id),
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text NOT NULL,
    modified_at  timestamptz NOT NULL DEFAULT now(),
    modified_by  text NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    properties   jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (repo_id, folder, name)
);
CREATE INDEX artifacts_of_blob ON artifacts (blob_id) WHERE blob_id IS NOT NULL;

-- Audit and idempotency in one: an upload's id is unique, so a repeated commit finds the first.
CREATE TABLE events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind        text NOT NULL,
    upload_id   uuid UNIQUE,
    repository  text COLLATE "C",
    path        text COLLATE "C",
    sha256      bytea,
    adopted     boolean,
    principal   text NOT NULL,
    request_id  text NOT NULL,
    detail      jsonb
);

-- ---------------------------------------------------------------- work for the maintenance jobs

CREATE TABLE repair_queue (
    blob_id    bigint PRIMARY KEY REFERENCES blobs (id),
    reason     text NOT NULL CHECK (reason IN ('short_write', 'suspect', 'redundancy', 'corrupt', 'missing')),
    queued_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE gc_candidates (
    blob_id  bigint PRIMARY KEY REFERENCES blobs (id),
    since    timestamptz NOT NULL DEFAULT now()
);

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

-- ---------------------------------------------------------------- functions

CREATE FUNCTION node_is_up(p_node nodes)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT p_node.stopped_at IS NULL AND p_node.heartbeat_at > clock_timestamp() - make_interval(secs => coalesce(
        (SELECT (value #>> '{}')::double precision FROM settings WHERE key = 'node_down_seconds'), 10))
$$;

-- Which replicas count: live, on a shard that serves reads, on a node heard of lately.
CREATE FUNCTION good_replicas(p_blob bigint)
RETURNS TABLE (shard_id smallint, generation uuid, zone text)
LANGUAGE sql STABLE AS $$
    SELECT r.shard_id, r.generation, n.zone
      FROM replicas r
      JOIN shards s ON s.id = r.shard_id AND s.state NOT IN ('offline', 'lost')
      JOIN nodes n ON n.id = s.node_id AND node_is_up(n)
     WHERE r.blob_id = p_blob AND r.state = 'live'
$$;

CREATE FUNCTION enqueue_repair(p_blob bigint, p_reason text)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO repair_queue (blob_id, reason) VALUES (p_blob, p_reason) ON CONFLICT (blob_id) DO NOTHING
$$;

CREATE FUNCTION release_blob(p_blob bigint)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO gc_candidates (blob_id) VALUES (p_blob) ON CONFLICT (blob_id) DO UPDATE SET since = now()
$$;

-- Make sure the folder p_folder and its ancestors exist; false when one of them is an artifact.
-- The lock is shared by all who add to folders, taken alone by whoever removes them: nothing lands
-- in a vanishing one.
CREATE FUNCTION ensure_folder(p_repo integer, p_folder text, p_principal text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_parts  text[];
    v_parent text := '';
    v_part   text;
BEGIN
    IF p_folder = '' THEN
        RETURN true;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(1, p_repo);
    v_parts := string_to_array(p_folder, '/');
    PERFORM 1 FROM artifacts
      WHERE repo_id = p_repo AND name = v_parts[cardinality(v_parts)] AND blob_id IS NULL
        AND folder = array_to_string(v_parts[:cardinality(v_parts) - 1], '/');
    IF FOUND THEN
        RETURN true;
    END IF;
    FOREACH v_part IN ARRAY v_parts LOOP
        INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by)
        VALUES (p_repo, v_parent, v_part, p_principal, p_principal)
        ON CONFLICT (repo_id, folder, name) DO NOTHING;
        PERFORM 1 FROM artifacts
          WHERE repo_id = p_repo AND folder = v_parent AND name = v_part AND blob_id IS NULL;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        v_parent := CASE WHEN v_parent = '' THEN v_part ELSE v_parent || '/' || v_part END;
    END LOOP;
    RETURN true;
END
$$;

-- Commit one upload: the only way an artifact comes to refer to a blob. Each statement sees a fresh
-- snapshot (READ COMMITTED), which the loop below and the counting after the lock rely on.
--
-- Outcomes: 'adopted' (our replicas are now the blob's), 'deduplicated' (the confirmed ones suffice,
-- ours may be deleted), 'confirm' (content is known and p_confirmed is NULL: nothing was done; ask
-- the shards of the replicas returned and call again), 'too_old', 'no_repository'. SQLSTATE HF001: a
-- folder is where the artifact should be, or the other way round; HF001 and 23505 (a generation was
-- condemned before it was committed) leave nothing behind.
CREATE FUNCTION commit_upload(
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
        v_adopt := v_short AND NOT p_shards <@ v_confirmed;
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
        UPDATE artifacts a
           SET blob_id = v_blob, created_at = v_at, created_by = p_principal, modified_at = p_started,
               modified_by = p_principal, updated_at = v_at, properties = p_properties
         WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name;
        EXIT;
    END LOOP;
    IF v_old <> v_blob THEN
        PERFORM release_blob(v_old);
    END IF;
    IF NOT v_adopt THEN
        UPDATE events SET adopted = false WHERE id = v_event;
    END IF;
    created_at := v_at;
    outcome := CASE WHEN v_adopt THEN 'adopted' ELSE 'deduplicated' END;
END
$$;

-- A reader found a bad copy: mark it, so that it no longer counts, and ask for repair. The rule for
-- whoever lessens the good copies: lock the blob's row first. False when the replica is no longer live.
CREATE FUNCTION suspect_replica(p_shard smallint, p_generation uuid)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_blob bigint;
BEGIN
    SELECT r.blob_id INTO v_blob FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation;
    PERFORM 1 FROM blobs b WHERE b.id = v_blob FOR NO KEY UPDATE;
    UPDATE replicas r SET state = 'suspect'
      WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = v_blob AND r.state = 'live';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM enqueue_repair(v_blob, 'suspect');
    RETURN true;
END
$$;

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

-- Remove one artifact, or a folder with everything in it; returns how many rows went.
CREATE FUNCTION delete_item(
    p_repo integer, p_folder text, p_name text, p_principal text, p_request text
)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_path    text := concat_ws('/', nullif(p_folder, ''), p_name);
    v_blob    bigint;
    v_gone    bigint;
    v_sha256  bytea;
BEGIN
    SELECT a.blob_id INTO v_blob FROM artifacts a
      WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- What was seen may have changed its kind by now; what has, is not what was asked to be removed.
    IF v_blob IS NOT NULL THEN
        DELETE FROM artifacts a
         WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name AND a.blob_id IS NOT NULL
        RETURNING a.blob_id INTO v_blob;
        GET DIAGNOSTICS v_gone = ROW_COUNT;
        IF v_gone > 0 THEN
            PERFORM release_blob(v_blob);
        END IF;
    ELSE
        PERFORM pg_advisory_xact_lock(1, p_repo);
        WITH gone AS (
            DELETE FROM artifacts a
             WHERE a.repo_id = p_repo
               AND ((a.folder = p_folder AND a.name = p_name AND a.blob_id IS NULL)
                    OR a.folder = v_path OR (a.folder >= v_path || '/' AND a.folder < v_path || '0'))
            RETURNING a.blob_id
        ), released AS (
            SELECT release_blob(b) FROM (
                SELECT DISTINCT g.blob_id AS b FROM gone g WHERE g.blob_id IS NOT NULL ORDER BY 1
            ) AS distinct_blobs
        )
        SELECT count(*) + 0 * (SELECT count(*) FROM released) INTO v_gone FROM gone;
    END IF;
    IF v_gone > 0 THEN
        SELECT b.sha256 INTO v_sha256 FROM blobs b WHERE b.id = v_blob;
        INSERT INTO events (kind, repository, path, sha256, principal, request_id, detail)
        SELECT 'delete', r.key, v_path, v_sha256, p_principal, p_request, jsonb_build_object('items', v_gone)
          FROM repositories r WHERE r.id = p_repo;
    END IF;
    RETURN v_gone;
END
$$;

-- What nodes keep in memory is announced when it changes; uploads announce nothing (a NOTIFY takes a
-- global lock at commit).
CREATE FUNCTION announce_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('holdfast', TG_TABLE_NAME);
    RETURN NULL;
END
$$;
CREATE TRIGGER settings_announced AFTER INSERT OR UPDATE OR DELETE ON settings
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER repositories_announced AFTER INSERT OR UPDATE OR DELETE ON repositories
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER users_announced AFTER INSERT OR UPDATE OR DELETE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER tokens_announced AFTER INSERT OR UPDATE OR DELETE ON tokens
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER shards_announced AFTER INSERT OR UPDATE OR DELETE ON shards
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
