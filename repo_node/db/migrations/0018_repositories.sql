-- Repositories have patterns, a quota, and rules of what may be overwritten and deleted; virtual ones show others.

ALTER TABLE repositories DROP CONSTRAINT repositories_rclass_check;
ALTER TABLE repositories ADD CONSTRAINT repositories_rclass_check CHECK (rclass IN ('local', 'virtual'));
ALTER TABLE repositories
    ADD COLUMN notes text NOT NULL DEFAULT '',
    ADD COLUMN layout text NOT NULL DEFAULT 'simple-default',
    ADD COLUMN includes_pattern text NOT NULL DEFAULT '**/*',
    ADD COLUMN excludes_pattern text NOT NULL DEFAULT '',
    ADD COLUMN paths_regex text,
    ADD COLUMN checksum_policy text NOT NULL DEFAULT 'client-checksums'
        CHECK (checksum_policy IN ('client-checksums', 'server-generated-checksums')),
    ADD COLUMN blacked_out boolean NOT NULL DEFAULT false,
    ADD COLUMN priority boolean NOT NULL DEFAULT false,
    ADD COLUMN allow_overwrite boolean NOT NULL DEFAULT true,
    ADD COLUMN allow_delete boolean NOT NULL DEFAULT true,
    ADD COLUMN quota_bytes bigint CHECK (quota_bytes >= 0),
    ADD COLUMN default_deployment_id integer REFERENCES repositories (id);

CREATE TABLE repository_members (
    virtual_id    integer NOT NULL REFERENCES repositories (id),
    position      smallint NOT NULL,
    member_id     integer NOT NULL REFERENCES repositories (id),
    PRIMARY KEY (virtual_id, position),
    UNIQUE (virtual_id, member_id)
);
CREATE INDEX repository_members_of ON repository_members (member_id);
CREATE TABLE repository_usage (
    repo_id       integer PRIMARY KEY REFERENCES repositories (id),
    bytes         bigint NOT NULL
);
CREATE TABLE usage_changes (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repo_id       integer NOT NULL REFERENCES repositories (id),
    bytes         bigint NOT NULL
);
CREATE INDEX usage_changes_of ON usage_changes (repo_id);

DROP TRIGGER repositories_counted ON repositories;
CREATE TRIGGER repositories_counted AFTER UPDATE OF redundancy ON repositories
    FOR EACH ROW WHEN (OLD.redundancy IS DISTINCT FROM NEW.redundancy) EXECUTE FUNCTION ask_census();
DROP FUNCTION put_artifact(integer, text, text, bigint, jsonb, text, timestamptz, timestamptz);

-- Whether a repository's patterns (paths_regex) show an artifact. By CASE, because of what the planner takes a comparison
-- for that it cannot know: one that hardly a row fulfils, so that a page of a folder is worth reading and sorting all of it.
CREATE FUNCTION shows(p_regex text, p_folder text, p_name text)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_regex IS NULL THEN true ELSE concat_ws('/', nullif(p_folder, ''), p_name) ~ p_regex END
$$;

-- Raise HF012 when a repository's patterns do not show what is to be stored: it would be acknowledged, and not be there.
CREATE FUNCTION require_shown(p_shown boolean, p_repository text, p_folder text, p_name text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT p_shown THEN
        RAISE EXCEPTION 'the patterns of the repository % keep % out', p_repository,
              concat_ws('/', nullif(p_folder, ''), p_name) USING ERRCODE = 'HF012';
    END IF;
END
$$;

-- Where nothing may be overwritten, or deleted, nothing is, whoever asks and by whatever function (HF009).
CREATE FUNCTION refuse_overwrite() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_key text;
BEGIN
    SELECT r.key INTO v_key FROM repositories r WHERE r.id = OLD.repo_id AND NOT r.allow_overwrite;
    IF FOUND THEN
        RAISE EXCEPTION 'in the repository % nothing is overwritten: %', v_key,
              concat_ws('/', nullif(OLD.folder, ''), OLD.name) USING ERRCODE = 'HF009';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER artifacts_stay_as_they_are BEFORE UPDATE OF blob_id ON artifacts
    FOR EACH ROW WHEN (OLD.blob_id IS DISTINCT FROM NEW.blob_id) EXECUTE FUNCTION refuse_overwrite();

CREATE FUNCTION refuse_delete() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_key  text;
    v_path text;
BEGIN
    SELECT r.key, concat_ws('/', nullif(g.folder, ''), g.name) INTO v_key, v_path
      FROM gone g JOIN repositories r ON r.id = g.repo_id
     WHERE g.blob_id IS NOT NULL AND NOT r.allow_delete LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'from the repository % nothing is deleted: %', v_key, v_path USING ERRCODE = 'HF009';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER artifacts_stay AFTER DELETE ON artifacts REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_delete();

-- The bytes of the artifacts in a repository with a quota; null while nobody has counted them.
CREATE FUNCTION used_bytes(p_repo integer)
RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT (u.bytes + coalesce((SELECT sum(c.bytes) FROM usage_changes c WHERE c.repo_id = p_repo), 0))::bigint
      FROM repository_usage u WHERE u.repo_id = p_repo
$$;

-- Whether so many bytes more may come to a repository.
CREATE FUNCTION has_room(p_repo integer, p_bytes bigint)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT p_bytes <= 0 OR coalesce(
        (SELECT r.quota_bytes >= used_bytes(r.id) + p_bytes FROM repositories r WHERE r.id = p_repo), true)
$$;

-- The bytes of a blob, 0 where there is none.
CREATE FUNCTION size_of(p_blob bigint)
RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT b.size FROM blobs b WHERE b.id = p_blob), 0)
$$;

-- Note that the artifacts of a repository became larger, or smaller. Where it has a quota that they would exceed, HF010.
-- Uploads that are committed at the same moment do not see one another: only by those is a quota ever exceeded.
CREATE FUNCTION note_usage(p_repo integer, p_bytes bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_key   text;
    v_quota bigint;
BEGIN
    SELECT r.key, r.quota_bytes INTO v_key, v_quota FROM repositories r WHERE r.id = p_repo AND r.quota_bytes IS NOT NULL;
    IF NOT FOUND OR p_bytes = 0 THEN
        RETURN;
    END IF;
    IF NOT has_room(p_repo, p_bytes) THEN
        RAISE EXCEPTION 'the repository % has a quota of % bytes, % of which are used', v_key, v_quota, used_bytes(p_repo)
              USING ERRCODE = 'HF010';
    END IF;
    INSERT INTO usage_changes (repo_id, bytes) VALUES (p_repo, p_bytes);
END
$$;

-- Let an artifact refer to a blob that the caller has locked; what it overwrites goes to the trash, or its blob is
-- released. Returns that blob. Where nothing may be overwritten, the same content again, from somebody who repeats what
-- was done, leaves the artifact as it is but for its properties. SQLSTATE HF001: a folder is where the artifact should
-- be, or the other way round.
CREATE FUNCTION put_artifact(
    p_repo integer, p_folder text, p_name text, p_blob bigint, p_properties jsonb, p_principal text,
    p_started timestamptz, p_at timestamptz
)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_old        bigint;
    v_kept       boolean;
    v_properties jsonb;
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
        SELECT a.blob_id, a.properties INTO v_old, v_properties FROM artifacts a
          WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF v_old IS NULL THEN
            RAISE EXCEPTION '% is a folder', p_name USING ERRCODE = 'HF001';
        END IF;
        IF v_old <> p_blob OR v_properties <> p_properties THEN
            PERFORM refuse_beyond_limit('overwrite', concat_ws('/', nullif(p_folder, ''), p_name));
        END IF;
        IF v_old <> p_blob THEN
            v_kept := throw_away(p_repo, p_folder, p_name, p_principal);
        ELSIF NOT (SELECT r.allow_overwrite FROM repositories r WHERE r.id = p_repo) THEN
            UPDATE artifacts a SET properties = p_properties, updated_at = p_at
             WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name AND a.properties <> p_properties;
            EXIT;
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
    RETURN v_old;
END
$$;

-- Commit one upload that brought its bytes. Each statement sees a fresh
-- snapshot (READ COMMITTED), which the loop below and the counting after the lock rely on.
--
-- Outcomes: 'adopted' (our replicas are now the blob's), 'deduplicated' (the confirmed ones suffice,
-- ours may be deleted), 'confirm' (content is known and p_confirmed is NULL: nothing was done; ask
-- the shards of the replicas returned and call again), 'too_old', 'no_repository'. SQLSTATE HF001: a
-- folder is where the artifact should be, or the other way round; HF001, HF009 (nothing may be overwritten there),
-- HF010 (the quota), HF012 (the patterns) and 23505 (a generation was condemned before it was committed) leave nothing
-- behind.
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
    p_address      inet DEFAULT NULL,
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
    v_counted   boolean;
    v_shown     boolean;
    v_event     bigint;
    v_at        timestamptz;
    v_old       bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1, p_repo);
    SELECT r.key, r.quota_bytes IS NOT NULL, shows(r.paths_regex, p_folder, p_name) INTO v_key, v_counted, v_shown
      FROM repositories r WHERE r.id = p_repo AND r.rclass <> 'virtual';
    IF FOUND THEN
        INSERT INTO events AS e (kind, upload_id, repository, path, sha256, adopted, principal, request_id, address)
        VALUES ('deploy', p_upload, v_key, concat_ws('/', nullif(p_folder, ''), p_name), p_sha256, true,
                p_principal, p_request, p_address)
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
    PERFORM require_shown(v_shown, v_key, p_folder, p_name);

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

    v_old := put_artifact(p_repo, p_folder, p_name, v_blob, p_properties, p_principal, p_started, v_at);
    IF v_counted THEN
        PERFORM note_usage(p_repo, p_size - size_of(v_old));
    END IF;
    IF NOT v_adopt THEN
        UPDATE events SET adopted = false WHERE id = v_event;
    END IF;
    created_at := v_at;
    outcome := CASE WHEN v_adopt THEN 'adopted' ELSE 'deduplicated' END;
END
$$;

-- Commit uploads that came at the same time, in one transaction: those that are plain, which means that their content
-- is new, their path free and shown, its folder there and their repository without a quota. Of all others nothing is
-- done; commit_upload does them one by one. Each upload is an index into the arrays; p_replica_of says whose copy each of p_shards and p_generations is.
--
-- Locks are taken in one order: events by upload, blobs by digest, artifacts by path. It waits for nobody long
-- (55P03), and whatever error ends it leaves nothing of any upload behind.
CREATE OR REPLACE FUNCTION commit_new_uploads(
    p_age_max      interval,
    p_uploads      uuid[],
    p_started      timestamptz[],
    p_repos        integer[],
    p_folders      text[],
    p_names        text[],
    p_properties   jsonb[],
    p_principals   text[],
    p_requests     text[],
    p_uids         uuid[],
    p_sha256       bytea[],
    p_sha1         bytea[],
    p_md5          bytea[],
    p_sizes        bigint[],
    p_blocks       bytea[],
    p_redundancy   smallint[],
    p_replica_of   integer[],
    p_shards       smallint[],
    p_generations  uuid[],
    p_addresses    inet[] DEFAULT NULL,
    OUT committed  integer[],
    OUT created_at timestamptz[]
)
LANGUAGE plpgsql
SET lock_timeout = '200ms' SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_repos integer[];
    v_plain integer[];
    v_keys  text[];
    v_noted integer[];
    v_at    timestamptz[];
    v_blobs bigint[];
BEGIN
    -- Whoever removes folders has the lock alone, and for as long as it takes.
    v_repos := ARRAY(SELECT d.repo FROM (SELECT DISTINCT unnest(p_repos) AS repo) d
                      WHERE pg_try_advisory_xact_lock_shared(1, d.repo));
    SELECT array_agg(u.n), array_agg(r.key) INTO v_plain, v_keys
      FROM unnest(p_repos, p_folders, p_names, p_sha256, p_started)
           WITH ORDINALITY AS u (repo, folder, name, sha256, started, n)
      JOIN repositories r ON r.id = u.repo AND r.rclass <> 'virtual' AND r.quota_bytes IS NULL
     WHERE u.repo = ANY (v_repos)
       AND u.started >= clock_timestamp() - p_age_max
       AND shows(r.paths_regex, u.folder, u.name)
       AND (SELECT 1 FROM blobs b WHERE b.sha256 = u.sha256) IS NULL
       AND (SELECT 1 FROM artifacts a WHERE a.repo_id = u.repo AND a.folder = u.folder AND a.name = u.name) IS NULL
       AND (u.folder = '' OR (
            SELECT 1 FROM artifacts f
             WHERE f.repo_id = u.repo AND f.folder = regexp_replace(u.folder, '/?[^/]*$', '')
               AND f.name = substring(u.folder FROM '[^/]*$') AND f.blob_id IS NULL) IS NOT NULL);

    WITH noted AS (
        INSERT INTO events AS e (kind, upload_id, repository, path, sha256, adopted, principal, request_id, address)
        SELECT 'deploy', p_uploads[u.n], u.key, concat_ws('/', nullif(p_folders[u.n], ''), p_names[u.n]),
               p_sha256[u.n], true, p_principals[u.n], p_requests[u.n], p_addresses[u.n]
          FROM unnest(v_plain, v_keys) AS u (n, key) ORDER BY p_uploads[u.n]
        ON CONFLICT (upload_id) DO NOTHING
        RETURNING e.upload_id, e.at
    )
    SELECT array_agg(array_position(p_uploads, upload_id)), array_agg(at) INTO v_noted, v_at FROM noted;
    WITH made AS (
        INSERT INTO blobs AS b (uid, sha256, sha1, md5, size, redundancy, block_digests)
        SELECT p_uids[u.n], p_sha256[u.n], p_sha1[u.n], p_md5[u.n], p_sizes[u.n], p_redundancy[u.n], p_blocks[u.n]
          FROM unnest(v_noted) AS u (n) ORDER BY p_sha256[u.n]
        ON CONFLICT (sha256) DO NOTHING
        RETURNING b.uid, b.id
    )
    SELECT array_agg(array_position(p_uids, uid)), array_agg(id) INTO committed, v_blobs FROM made;
    IF cardinality(v_noted) > coalesce(cardinality(committed), 0) THEN
        -- Somebody has brought the same content meanwhile: no plain upload after all.
        DELETE FROM events e USING unnest(v_noted) AS u (n)
         WHERE e.upload_id = p_uploads[u.n] AND u.n <> ALL (coalesce(committed, '{}'));
    END IF;
    INSERT INTO replicas (shard_id, generation, blob_id)
    SELECT c.shard_id, c.generation, v_blobs[array_position(committed, c.n)]
      FROM unnest(p_replica_of, p_shards, p_generations) AS c (n, shard_id, generation) WHERE c.n = ANY (committed);
    created_at := ARRAY(SELECT v_at[array_position(v_noted, u.n)] FROM unnest(committed) WITH ORDINALITY AS u (n, place)
                         ORDER BY u.place);
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                           updated_at, properties)
    SELECT p_repos[u.n], p_folders[u.n], p_names[u.n], u.blob_id, u.at, p_principals[u.n], p_started[u.n],
           p_principals[u.n], u.at, p_properties[u.n]
      FROM unnest(committed, v_blobs, created_at) AS u (n, blob_id, at)
     ORDER BY p_repos[u.n], p_folders[u.n], p_names[u.n];
END
$$;

-- Commit one upload of known content, without bytes. Like commit_upload it may be repeated with the same p_upload, and
-- each statement sees a fresh snapshot. p_confirmed are the generations whose shards said, during this request, that
-- the file is there; of these so many copies and zones must still be good, or the bytes are wanted.
--
-- Outcomes: 'linked', 'unknown' (the blob is gone, or has too few copies: nothing was done), 'no_repository'. HF001,
-- HF009, HF010 and HF012 as in commit_upload.
CREATE OR REPLACE FUNCTION deploy_known(
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
    p_address      inet DEFAULT NULL,
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
    v_counted boolean;
    v_shown   boolean;
    v_event   bigint;
    v_at      timestamptz;
    v_old     bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1, p_repo);
    SELECT r.key, r.quota_bytes IS NOT NULL, shows(r.paths_regex, p_folder, p_name) INTO v_key, v_counted, v_shown
      FROM repositories r WHERE r.id = p_repo AND r.rclass <> 'virtual';
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
    INSERT INTO events AS e (kind, upload_id, repository, path, sha256, adopted, principal, request_id, address)
    SELECT 'deploy', p_upload, v_key, concat_ws('/', nullif(p_folder, ''), p_name), v_sha256, false, p_principal,
           p_request, p_address
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
    PERFORM require_shown(v_shown, v_key, p_folder, p_name);
    UPDATE blobs b SET redundancy = v_wanted WHERE b.id = p_blob AND b.redundancy < v_wanted;
    IF v_size > 0 AND v_copies < v_wanted THEN
        PERFORM enqueue_repair(p_blob, 'short_write');
    END IF;
    v_old := put_artifact(p_repo, p_folder, p_name, p_blob, p_properties, p_principal, p_started, v_at);
    IF v_counted THEN
        PERFORM note_usage(p_repo, v_size - size_of(v_old));
    END IF;
    created_at := v_at;
    outcome := 'linked';
END
$$;

-- Take the last p_max rows with p_low <= folder < p_high out of a repository, into the trash where it
-- keeps one; returns how many went. In this order whatever lies in a folder comes after the folder, so
-- that the rows left are whole at any point. The caller holds the repository's lock alone.
CREATE OR REPLACE FUNCTION take_out(p_repo integer, p_low text, p_high text, p_max bigint, p_principal text)
RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    v_keep boolean := trash_keeps(p_repo);
    v_counted boolean := (SELECT r.quota_bytes IS NOT NULL FROM repositories r WHERE r.id = p_repo);
    v_rows tid[];
    v_gone bigint;
    v_bytes bigint;
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
    SELECT count(*) + 0 * (SELECT count(*) FROM released),
           (SELECT sum(b.size) FROM gone g JOIN blobs b ON b.id = g.blob_id WHERE v_counted)
      INTO v_gone, v_bytes FROM gone;
    IF v_bytes > 0 THEN
        PERFORM note_usage(p_repo, -v_bytes);
    END IF;
    RETURN v_gone;
END
$$;

-- Remove one artifact, or a folder with everything in it, in steps of at most p_max rows; the folder
-- itself goes last. done is false while the caller should call again. Plans are not kept: where the table is nearly
-- empty, the index of all blobs' artifacts looks as good as the one of paths.
CREATE OR REPLACE FUNCTION delete_step(
    p_repo integer, p_folder text, p_name text, p_max bigint, p_principal text, p_request text,
    p_address      inet DEFAULT NULL,
    OUT gone bigint, OUT done boolean
)
LANGUAGE plpgsql SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    v_path    text := concat_ws('/', nullif(p_folder, ''), p_name);
    v_blob    bigint;
    v_keep    boolean;
    v_sha256  bytea;
    v_size    bigint;
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
        -- As whoever adds: what a repository allows does not change under it.
        PERFORM pg_advisory_xact_lock_shared(1, p_repo);
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
        PERFORM refuse_beyond_limit('folder', v_path);
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
        SELECT b.sha256, b.size INTO v_sha256, v_size FROM blobs b WHERE b.id = v_blob;
        IF v_size > 0 THEN
            PERFORM note_usage(p_repo, -v_size);
        END IF;
        INSERT INTO events (kind, repository, path, sha256, principal, request_id, address, detail)
        SELECT 'delete', r.key, v_path, v_sha256, p_principal, p_request, p_address, jsonb_build_object('items', gone)
          FROM repositories r WHERE r.id = p_repo;
    END IF;
END
$$;

-- Bring one thing back from the trash, to p_folder/p_name of p_repo. Outcomes: 'restored'; 'exists',
-- when an artifact is there and p_replace is false (with it, that one goes to the trash); 'gone', when
-- it is in the trash no more. SQLSTATE HF001, HF009, HF010 and HF012 as in commit_upload.
CREATE OR REPLACE FUNCTION restore_trash(
    p_trash bigint, p_repo integer, p_folder text, p_name text, p_replace boolean, p_principal text, p_request text,
    p_address inet DEFAULT NULL
)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_row    trash;
    v_wanted smallint;
    v_old    bigint;
    v_kept   boolean;
    v_key    text;
    v_shown  boolean;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1, p_repo);
    SELECT r.key, r.redundancy, shows(r.paths_regex, p_folder, p_name) INTO v_key, v_wanted, v_shown
      FROM repositories r WHERE r.id = p_repo AND r.rclass <> 'virtual';
    SELECT t.* INTO v_row FROM trash t WHERE t.id = p_trash FOR UPDATE;
    IF NOT FOUND OR v_key IS NULL THEN
        RETURN 'gone';
    END IF;
    PERFORM require_shown(v_shown, v_key, p_folder, p_name);
    PERFORM 1 FROM blobs b WHERE b.id = v_row.blob_id FOR NO KEY UPDATE;
    IF NOT ensure_folder(p_repo, p_folder, p_principal) THEN
        RAISE EXCEPTION 'a parent of % is an artifact', p_name USING ERRCODE = 'HF001';
    END IF;
    LOOP
        INSERT INTO artifacts (repo_id, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                               properties, restored_at)
        VALUES (p_repo, p_folder, p_name, v_row.blob_id, v_row.created_at, v_row.created_by, v_row.modified_at,
                v_row.modified_by, v_row.properties, now())
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
               properties = v_row.properties, restored_at = now()
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
    PERFORM note_usage(p_repo, size_of(v_row.blob_id) - size_of(v_old));
    DELETE FROM trash WHERE id = p_trash;
    INSERT INTO events (kind, repository, path, sha256, principal, request_id, address, detail)
    SELECT 'restore', v_key, concat_ws('/', nullif(p_folder, ''), p_name), b.sha256, p_principal, p_request, p_address,
           jsonb_build_object('from', concat_ws('/', v_row.repository, nullif(v_row.folder, ''), v_row.name))
      FROM blobs b WHERE b.id = v_row.blob_id;
    RETURN 'restored';
END
$$;

-- Part of a tree: an artifact or a folder, then all that lies in it, by path, behind p_after_folder/p_after_name;
-- at most p_max rows. The tree of '' is the whole repository. Between a folder's path and what lies deeper, paths
-- that only begin alike are sorted ('a', 'a-b', 'a/b'): hence three ranges. What the repository's patterns hide is not
-- there.
CREATE OR REPLACE FUNCTION tree_page(
    p_repo integer, p_folder text, p_name text, p_after_folder text, p_after_name text, p_max bigint
)
RETURNS SETOF artifacts LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_path   text := concat_ws('/', nullif(p_folder, ''), p_name);
    -- Whether the last page ended deeper than directly in the folder. No path has control characters.
    v_inside boolean := p_after_folder > v_path COLLATE "C";
    v_low    text := CASE WHEN v_inside THEN p_after_folder WHEN v_path = '' THEN chr(1) ELSE v_path || '/' END;
    v_count  bigint;
    v_left   bigint := p_max;
    v_regex  text;
BEGIN
    SELECT r.paths_regex INTO v_regex FROM repositories r WHERE r.id = p_repo;
    RETURN QUERY SELECT a.* FROM artifacts a
      WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name
        AND (a.folder, a.name) > (p_after_folder, p_after_name)
        AND (a.blob_id IS NULL OR shows(v_regex, a.folder, a.name));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_left := v_left - v_count;
    RETURN QUERY SELECT a.* FROM artifacts a
      WHERE a.repo_id = p_repo AND a.folder = v_path AND (a.folder, a.name) > (p_after_folder, p_after_name)
        AND (a.blob_id IS NULL OR shows(v_regex, a.folder, a.name))
      ORDER BY a.folder, a.name LIMIT v_left;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_left := v_left - v_count;
    IF v_left > 0 THEN
        RETURN QUERY SELECT a.* FROM artifacts a
          WHERE a.repo_id = p_repo AND (a.folder, a.name) > (v_low, CASE WHEN v_inside THEN p_after_name ELSE '' END)
            AND a.folder < CASE WHEN v_path = '' THEN repeat(chr(1114111), 100) ELSE v_path || '0' END
            AND (a.blob_id IS NULL OR shows(v_regex, a.folder, a.name))
          ORDER BY a.folder, a.name LIMIT v_left;
    END IF;
END
$$;

-- Copy or move one artifact or folder to p_to_folder/p_to_name of p_to, as it is, with its properties. Of a folder only
-- the folder. Outcomes: 'done'; 'same', when it is there already; 'gone', when there is nothing to be copied; 'conflict',
-- when a folder is where an artifact should be, or the other way round; 'forbidden', when another artifact is there and
-- may not be overwritten by whoever asks; 'overwrite', 'pattern' and 'quota', when the target's repository refuses it,
-- 'delete', when the source's does. What was in the place goes to the trash. The caller shares the locks of both
-- repositories.
CREATE OR REPLACE FUNCTION transfer_item(
    p_move boolean, p_from integer, p_folder text, p_name text, p_to integer, p_to_folder text, p_to_name text,
    p_principal text, p_may_overwrite boolean DEFAULT true
)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_row    artifacts;
    v_old    artifacts;
    v_kept   boolean;
    v_target repositories;
    v_moved  bigint;
BEGIN
    -- Locked against whoever deletes or overwrites it: until the end, one row at least refers to the blob.
    SELECT a.* INTO v_row FROM artifacts a
      WHERE a.repo_id = p_from AND a.folder = p_folder AND a.name = p_name FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'gone';
    END IF;
    IF v_row.blob_id IS NULL THEN
        IF NOT ensure_folder(p_to, concat_ws('/', nullif(p_to_folder, ''), p_to_name), p_principal) THEN
            RETURN 'conflict';
        END IF;
        UPDATE artifacts a SET properties = v_row.properties
          WHERE a.repo_id = p_to AND a.folder = p_to_folder AND a.name = p_to_name AND a.properties = '{}'
            AND v_row.properties <> '{}';
        RETURN 'done';
    END IF;
    SELECT r.* INTO v_target FROM repositories r WHERE r.id = p_to;
    IF NOT shows(v_target.paths_regex, p_to_folder, p_to_name) THEN
        RETURN 'pattern';
    END IF;
    IF p_move AND NOT (SELECT r.allow_delete FROM repositories r WHERE r.id = p_from) THEN
        RETURN 'delete';
    END IF;
    IF v_target.quota_bytes IS NOT NULL THEN
        -- Before anything is done, so that the rest of a tree can go on; note_usage looks again.
        SELECT a.* INTO v_old FROM artifacts a
          WHERE a.repo_id = p_to AND a.folder = p_to_folder AND a.name = p_to_name;
        v_moved := CASE WHEN p_move AND p_from = p_to THEN v_row.blob_id END;
        IF NOT has_room(p_to, size_of(v_row.blob_id) - size_of(v_moved) - size_of(v_old.blob_id)) THEN
            RETURN 'quota';
        END IF;
        v_old := NULL;
    END IF;
    IF NOT ensure_folder(p_to, p_to_folder, p_principal) THEN
        RETURN 'conflict';
    END IF;
    LOOP
        INSERT INTO artifacts (repo_id, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                               properties, downloads, downloaded_at, downloaded_by)
        VALUES (p_to, p_to_folder, p_to_name, v_row.blob_id, v_row.created_at, v_row.created_by, v_row.modified_at,
                v_row.modified_by, v_row.properties, CASE WHEN p_move THEN v_row.downloads ELSE 0 END,
                CASE WHEN p_move THEN v_row.downloaded_at END, CASE WHEN p_move THEN v_row.downloaded_by END)
        ON CONFLICT (repo_id, folder, name) DO NOTHING;
        EXIT WHEN FOUND;
        SELECT a.* INTO v_old FROM artifacts a
          WHERE a.repo_id = p_to AND a.folder = p_to_folder AND a.name = p_to_name FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF v_old.blob_id IS NULL THEN
            RETURN 'conflict';
        END IF;
        IF NOT p_move AND v_old.blob_id = v_row.blob_id AND v_old.properties = v_row.properties THEN
            RETURN 'same';
        END IF;
        IF NOT v_target.allow_overwrite THEN
            RETURN 'overwrite';
        END IF;
        IF NOT p_may_overwrite AND (v_old.blob_id <> v_row.blob_id OR v_old.properties <> v_row.properties) THEN
            RETURN 'forbidden';
        END IF;
        IF v_old.blob_id <> v_row.blob_id THEN
            v_kept := throw_away(p_to, p_to_folder, p_to_name, p_principal);
        END IF;
        UPDATE artifacts a
           SET blob_id = v_row.blob_id, created_at = v_row.created_at, created_by = v_row.created_by,
               modified_at = v_row.modified_at, modified_by = v_row.modified_by, updated_at = now(),
               properties = v_row.properties, restored_at = NULL
         WHERE a.repo_id = p_to AND a.folder = p_to_folder AND a.name = p_to_name;
        IF v_old.blob_id <> v_row.blob_id AND NOT v_kept THEN
            PERFORM release_blob(v_old.blob_id);
        END IF;
        EXIT;
    END LOOP;
    IF p_move THEN
        DELETE FROM artifacts a WHERE a.repo_id = p_from AND a.folder = p_folder AND a.name = p_name;
    END IF;
    IF v_target.quota_bytes IS NOT NULL THEN
        PERFORM note_usage(p_to, size_of(v_row.blob_id) - size_of(v_moved) - size_of(v_old.blob_id));
    END IF;
    IF p_move AND p_from <> p_to THEN
        PERFORM note_usage(p_from, -size_of(v_row.blob_id));
    END IF;
    RETURN 'done';
END
$$;

-- Copy or move a page of a tree (tree_page) to p_target in p_to: each artifact whole, the folders of a move stay until
-- prune_folders. What cannot be done is told in failed and reasons and hinders nothing else, but with p_fail_fast
-- it is the last of this page, and stopped says so. Safe to repeat.
CREATE OR REPLACE FUNCTION transfer_page(
    p_move boolean, p_fail_fast boolean, p_from integer, p_folder text, p_name text, p_to integer, p_target text,
    p_after_folder text, p_after_name text, p_max bigint, p_path_bytes integer, p_principal text, p_request text,
    p_from_limit text DEFAULT NULL, p_to_limit text DEFAULT NULL, p_overwrite_limit text DEFAULT NULL,
    p_address inet DEFAULT NULL,
    OUT seen bigint, OUT artifacts bigint, OUT folders bigint, OUT last_folder text, OUT last_name text,
    OUT failed text[], OUT reasons text[], OUT stopped boolean
)
LANGUAGE plpgsql AS $$
DECLARE
    v_source  text := concat_ws('/', nullif(p_folder, ''), p_name);
    v_wanted  smallint;
    v_rows    artifacts[];
    v_row     artifacts;
    v_to      text;
    v_outcome text;
    v_raised  bigint;
    v_path    text;
BEGIN
    seen := 0;
    artifacts := 0;
    folders := 0;
    failed := '{}';
    reasons := '{}';
    stopped := false;
    -- In one order, because whoever waits for one of them alone holds up all who come after.
    PERFORM pg_advisory_xact_lock_shared(1, least(p_from, p_to));
    PERFORM pg_advisory_xact_lock_shared(1, greatest(p_from, p_to));
    SELECT r.redundancy INTO v_wanted FROM repositories r WHERE r.id = p_to AND r.rclass <> 'virtual';
    IF NOT FOUND THEN
        -- Also the release before this one, which knows of no virtual ones, would put there what nobody finds again.
        RAISE foreign_key_violation USING MESSAGE = 'there is no repository that could hold it';
    END IF;
    v_rows := ARRAY(SELECT t FROM tree_page(p_from, p_folder, p_name, p_after_folder, p_after_name, p_max) t);
    -- Where more copies are wanted, the blobs are locked in digest order, before any artifact.
    PERFORM 1 FROM blobs b
      WHERE b.redundancy < v_wanted AND b.id IN (SELECT u.blob_id FROM unnest(v_rows) u)
      ORDER BY b.sha256 FOR NO KEY UPDATE;
    FOREACH v_row IN ARRAY v_rows LOOP
        seen := seen + 1;
        last_folder := v_row.folder;
        last_name := v_row.name;
        v_path := concat_ws('/', nullif(v_row.folder, ''), v_row.name);
        v_to := concat_ws('/', nullif(p_target, ''),
                          nullif(substr(v_path, length(v_source) + CASE WHEN v_source = '' THEN 1 ELSE 2 END), ''));
        IF octet_length(v_to) > p_path_bytes THEN
            v_outcome := 'length';
        ELSIF v_path !~ p_from_limit OR v_to !~ p_to_limit THEN
            v_outcome := CASE WHEN v_row.blob_id IS NULL THEN 'gone' ELSE 'forbidden' END;
        ELSE
            v_outcome := transfer_item(p_move, p_from, v_row.folder, v_row.name, p_to,
                                       coalesce(substring(v_to FROM '^(.*)/[^/]*$'), ''),
                                       substring(v_to FROM '[^/]*$'), p_principal,
                                       v_to ~ coalesce(p_overwrite_limit, ''));
        END IF;
        IF v_outcome IN ('conflict', 'length', 'forbidden', 'overwrite', 'pattern', 'quota', 'delete') THEN
            failed := failed || v_to;
            reasons := reasons || v_outcome;
            stopped := p_fail_fast;
            EXIT WHEN stopped;
        ELSIF v_outcome <> 'gone' THEN
            artifacts := artifacts + (v_row.blob_id IS NOT NULL)::integer;
            folders := folders + (v_row.blob_id IS NULL)::integer;
            UPDATE blobs b SET redundancy = v_wanted
              WHERE b.id = v_row.blob_id AND b.redundancy < v_wanted RETURNING b.id INTO v_raised;
            IF FOUND THEN
                PERFORM enqueue_repair(v_raised, 'redundancy');
            END IF;
        END IF;
    END LOOP;
    IF artifacts + folders > 0 THEN
        INSERT INTO events (kind, repository, path, sha256, principal, request_id, address, detail)
        SELECT CASE WHEN p_move THEN 'move' ELSE 'copy' END, t.key, p_target,
               CASE WHEN folders = 0 AND seen = 1 THEN (SELECT b.sha256 FROM blobs b WHERE b.id = v_row.blob_id) END,
               p_principal, p_request, p_address,
               jsonb_build_object('from', concat_ws('/', f.key, nullif(v_source, '')), 'items', artifacts + folders)
          FROM repositories t, repositories f WHERE t.id = p_to AND f.id = p_from;
    END IF;
END
$$;

-- Add up to p_max changes to what repositories with a quota use; returns how many. uncounted is one whose artifacts have
-- yet to be counted, if there is any.
CREATE FUNCTION fold_usage(p_max bigint, OUT folded bigint, OUT uncounted integer)
LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (
        DELETE FROM usage_changes c
         WHERE c.id = ANY (ARRAY(SELECT f.id FROM usage_changes f JOIN repository_usage u ON u.repo_id = f.repo_id
                                  ORDER BY f.id LIMIT p_max))
        RETURNING c.repo_id, c.bytes
    ), added AS (
        UPDATE repository_usage u SET bytes = u.bytes + s.bytes
          FROM (SELECT g.repo_id, sum(g.bytes) AS bytes FROM gone g GROUP BY g.repo_id) AS s
         WHERE u.repo_id = s.repo_id
    )
    SELECT count(*) INTO folded FROM gone;
    SELECT r.id INTO uncounted FROM repositories r
     WHERE r.quota_bytes IS NOT NULL AND NOT EXISTS (SELECT 1 FROM repository_usage u WHERE u.repo_id = r.id) LIMIT 1;
END
$$;

-- Count the artifacts of a repository with a quota, once; false when that is done, or somebody is at it. What changes
-- meanwhile is in the one or in the other part of what this one snapshot subtracts; whoever changes the quota waits.
CREATE FUNCTION count_usage(p_repo integer)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(4, p_repo) THEN
        RETURN false;
    END IF;
    INSERT INTO repository_usage (repo_id, bytes)
    SELECT r.id, coalesce((SELECT sum(b.size) FROM artifacts a JOIN blobs b ON b.id = a.blob_id WHERE a.repo_id = r.id), 0)
                 - coalesce((SELECT sum(c.bytes) FROM usage_changes c WHERE c.repo_id = r.id), 0)
      FROM repositories r
     WHERE r.id = p_repo AND r.quota_bytes IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM repository_usage u WHERE u.repo_id = r.id)
    ON CONFLICT (repo_id) DO NOTHING;
    RETURN FOUND;
END
$$;

-- What refers to a repository that goes, in whatever statement, goes with it; its artifacts must be gone before.
CREATE FUNCTION leave_others() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM repository_members m WHERE m.member_id = OLD.id OR m.virtual_id = OLD.id;
    UPDATE repositories r SET default_deployment_id = NULL WHERE r.default_deployment_id = OLD.id;
    DELETE FROM usage_changes c WHERE c.repo_id = OLD.id;
    DELETE FROM repository_usage u WHERE u.repo_id = OLD.id;
    RETURN OLD;
END
$$;
CREATE TRIGGER repositories_leave BEFORE DELETE ON repositories FOR EACH ROW EXECUTE FUNCTION leave_others();
