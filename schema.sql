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

-- Who is the primary node: the holder, under an epoch that only ever grows, until expires_at by the
-- database's time. The token is random: a holder proves itself by it, not by its name.
CREATE TABLE lease (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch        bigint NOT NULL CHECK (epoch > 0),
    holder       text NOT NULL COLLATE "C",
    token        uuid NOT NULL,
    acquired_at  timestamptz NOT NULL,
    renewed_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL
);

-- Why nothing may be deleted now, until an operator releases it. A released one stays, for its
-- allowance: how many blobs a run of gc may remove although that is implausibly many.
CREATE TABLE holds (
    reason       text PRIMARY KEY CHECK (reason IN ('lost_history', 'volume', 'rebuild', 'live_removal', 'operator')),
    detail       text NOT NULL,
    since        timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at  timestamptz,
    released_by  text,
    allowance    bigint NOT NULL DEFAULT 0
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
    created_by    text NOT NULL,
    -- Whether what is deleted or overwritten here is kept in the trash for a while.
    trash         boolean NOT NULL DEFAULT true
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
    reason     text NOT NULL CHECK (reason IN ('short_write', 'suspect', 'redundancy')),
    queued_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE gc_candidates (
    blob_id  bigint PRIMARY KEY REFERENCES blobs (id),
    since    timestamptz NOT NULL DEFAULT now(),
    reason   text NOT NULL DEFAULT 'released' CHECK (reason IN ('released', 'expired', 'missed'))
);

-- Files to be removed from their shard by its owner, not before a time. Its replica is condemned as
-- long as a file is listed here, so that the primary key of replicas keeps it from ever being live.
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

-- Artifacts that were deleted or overwritten, as they were; they keep their blob. The repository is
-- named by its key, because it may be gone, or another one of that key.
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
    INSERT INTO gc_candidates (blob_id) VALUES (p_blob)
    ON CONFLICT (blob_id) DO UPDATE SET since = now(), reason = excluded.reason
$$;

-- Whether what leaves this repository is kept in the trash.
CREATE FUNCTION trash_keeps(p_repo integer)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT r.trash AND coalesce(
               (SELECT (value #>> '{}')::double precision FROM settings WHERE key = 'trash_days'), 14) > 0
      FROM repositories r WHERE r.id = p_repo
$$;

-- Put an artifact that is about to be overwritten, and whose row the caller has locked, into the
-- trash; false when its repository keeps none, and the caller releases its blob.
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

-- Every job that deletes asks this first.
CREATE FUNCTION deletions_held()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM holds WHERE released_at IS NULL)
$$;

-- Whether a shard knows of a primary that this database does not: what happened since is forgotten here.
CREATE FUNCTION history_is_lost()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM holds WHERE reason = 'lost_history' AND released_at IS NULL)
$$;

-- Hold every deletion until an operator releases it; false when it was held for that reason already.
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

-- List a file for removal and condemn its replica, whatever that was: live, suspect, or never committed.
-- The rule for reducers is the caller's: lock the blob, count anew, then call. Listed already: nothing changes.
CREATE FUNCTION remove_later(
    p_shard smallint, p_generation uuid, p_sha256 bytea, p_reason text, p_size bigint DEFAULT 0,
    p_delay interval DEFAULT NULL
)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO replicas AS r (shard_id, generation, blob_id, state) VALUES (p_shard, p_generation, NULL, 'condemned')
    ON CONFLICT (shard_id, generation) DO UPDATE SET blob_id = NULL, state = 'condemned'
     WHERE r.state <> 'condemned';
    INSERT INTO removals (shard_id, generation, sha256, size, reason, not_before, epoch)
    VALUES (p_shard, p_generation, p_sha256, p_size, p_reason,
            clock_timestamp() + coalesce(p_delay, removal_delay()), coalesce((SELECT l.epoch FROM lease l), 0))
    ON CONFLICT (shard_id, generation) DO NOTHING;
END
$$;

-- The same for a file that may have been committed meanwhile, as after a write of unknown outcome: false,
-- and nothing happens, when it is a blob's replica. Otherwise it can never become one.
CREATE FUNCTION remove_unless_live(
    p_shard smallint, p_generation uuid, p_sha256 bytea, p_reason text, p_size bigint DEFAULT 0,
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

CREATE FUNCTION removal_delay()
RETURNS interval LANGUAGE sql STABLE AS $$
    SELECT make_interval(secs => coalesce(
        (SELECT (value #>> '{}')::double precision FROM settings WHERE key = 'removal_delay_seconds'), 86400))
$$;

-- A condemned generation never becomes live again: its file may be gone.
CREATE FUNCTION refuse_revival() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'replica % on shard % is condemned', OLD.generation, OLD.shard_id USING ERRCODE = 'HF004';
END
$$;
CREATE TRIGGER replicas_stay_condemned BEFORE UPDATE ON replicas
    FOR EACH ROW WHEN (OLD.state = 'condemned' AND NEW.state <> 'condemned') EXECUTE FUNCTION refuse_revival();

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

-- Take the last p_max rows with p_low <= folder < p_high out of a repository, into the trash where it
-- keeps one; returns how many went. In this order whatever lies in a folder comes after the folder, so
-- that the rows left are whole at any point. The caller holds the repository's lock alone.
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

-- Remove one artifact, or a folder with everything in it, in steps of at most p_max rows; the folder
-- itself goes last. done is false while the caller should call again.
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

-- All at once, as releases before this one ask for it; returns how many rows went.
CREATE FUNCTION delete_item(
    p_repo integer, p_folder text, p_name text, p_principal text, p_request text
)
RETURNS bigint LANGUAGE sql AS $$
    SELECT d.gone FROM delete_step(p_repo, p_folder, p_name, 1000000000, p_principal, p_request) d
$$;

-- Bring one thing back from the trash, to p_folder/p_name of p_repo. Outcomes: 'restored'; 'exists',
-- when an artifact is there and p_replace is false (with it, that one goes to the trash); 'gone', when
-- it is in the trash no more. SQLSTATE HF001 as in commit_upload.
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

-- Let go of p_ids in the trash for good; returns how many went.
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

-- ---------------------------------------------------------------- the primary node

-- Become the primary when nobody is, under an epoch above all that this database and the reachable
-- shards (p_known) know of; NULL while somebody is. A shard that knows more than this database proves
-- that history was lost, and holds every deletion.
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

-- What the primary does carries its epoch and token: whoever is no longer it stops here (HF003). Held
-- to the end of the transaction, so that no successor commits before.
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

-- ---------------------------------------------------------------- garbage collection

-- Remove those of p_blobs, candidates since p_since, to which nothing refers: rows at once, files by
-- way of the removal list. The foreign keys have the last word: a reference this function does not know
-- of ends it with an error. SQLSTATE HF003: not the primary; HF005: deletions are held.
CREATE FUNCTION gc_collect(
    p_epoch bigint, p_token uuid, p_blobs bigint[], p_since timestamptz[], p_grace interval,
    OUT removed_blobs bigint, OUT removed_bytes bigint, OUT removed_files bigint, OUT referenced bigint
)
LANGUAGE plpgsql AS $$
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
         WHERE NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.blob_id = l.id)
           AND NOT EXISTS (SELECT 1 FROM trash t WHERE t.blob_id = l.id)
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

-- Make candidates of those among the next p_max blobs after p_after to which nothing refers, though
-- nobody said so; last is where the next call goes on, NULL behind the last blob.
CREATE FUNCTION gc_feed(p_epoch bigint, p_token uuid, p_after bigint, p_max integer, OUT last bigint, OUT missed bigint)
LANGUAGE plpgsql AS $$
DECLARE
    v_page bigint[];
BEGIN
    PERFORM require_lease(p_epoch, p_token);
    v_page := ARRAY(SELECT b.id FROM blobs b WHERE b.id > p_after ORDER BY b.id LIMIT p_max);
    INSERT INTO gc_candidates (blob_id, reason)
    SELECT p.id, 'missed' FROM unnest(v_page) AS p (id)
     WHERE NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.blob_id = p.id)
       AND NOT EXISTS (SELECT 1 FROM trash t WHERE t.blob_id = p.id)
       AND NOT EXISTS (SELECT 1 FROM gc_candidates c WHERE c.blob_id = p.id)
     ORDER BY p.id
    ON CONFLICT (blob_id) DO NOTHING;
    GET DIAGNOSTICS missed = ROW_COUNT;
    last := v_page[cardinality(v_page)];
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
