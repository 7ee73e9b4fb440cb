-- Users have groups, and permission targets say what they may do where. Some statements do less than they could, because
-- whoever asked may not.

ALTER TABLE users ADD COLUMN email text NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN password_changed_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE users ADD COLUMN must_change_password boolean NOT NULL DEFAULT false;
INSERT INTO users (name, password_hash) SELECT 'anonymous', '!' WHERE EXISTS (SELECT 1 FROM users)
    ON CONFLICT (name) DO NOTHING;

CREATE TABLE groups (
    id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL UNIQUE COLLATE "C",
    description  text NOT NULL DEFAULT '',
    -- Whether new users become members.
    auto_join    boolean NOT NULL DEFAULT false,
    created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE group_members (
    user_id   integer NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    group_id  integer NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    PRIMARY KEY (user_id, group_id)
);
CREATE INDEX group_members_of_group ON group_members (group_id);

-- Where users and groups have which actions. repositories are keys, or ANY, ANY LOCAL, ANY REMOTE: they need not exist.
CREATE TABLE permission_targets (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE COLLATE "C",
    repositories  text[] NOT NULL,
    includes      text[] NOT NULL DEFAULT '{**}',
    excludes      text[] NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE permission_grants (
    target_id  integer NOT NULL REFERENCES permission_targets (id) ON DELETE CASCADE,
    user_id    integer REFERENCES users (id) ON DELETE CASCADE,
    group_id   integer REFERENCES groups (id) ON DELETE CASCADE,
    actions    text[] NOT NULL CHECK (actions <@ '{read,annotate,write,delete,manage}' AND cardinality(actions) > 0),
    CHECK ((user_id IS NULL) <> (group_id IS NULL)),
    UNIQUE (target_id, user_id),
    UNIQUE (target_id, group_id)
);
CREATE INDEX permission_grants_of_user ON permission_grants (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX permission_grants_of_group ON permission_grants (group_id) WHERE group_id IS NOT NULL;

CREATE TRIGGER groups_announced AFTER INSERT OR UPDATE OR DELETE ON groups
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER group_members_announced AFTER INSERT OR UPDATE OR DELETE ON group_members
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER permission_targets_announced AFTER INSERT OR UPDATE OR DELETE ON permission_targets
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER permission_grants_announced AFTER INSERT OR UPDATE OR DELETE ON permission_grants
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();

-- Let a statement do less than it could, because whoever asked may not: p_limits are words, 'overwrite' for what may not
-- overwrite an artifact with other content, 'folder' for what may not delete a folder (HF008). It holds until the
-- transaction's end. Returns p_repo, so that a function that takes it is called after this.
CREATE FUNCTION limit_to(p_limits text, p_repo integer)
RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('holdfast.limits', p_limits, true);
    RETURN p_repo;
END
$$;

CREATE FUNCTION refuse_beyond_limit(p_word text, p_path text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_word = ANY (string_to_array(current_setting('holdfast.limits', true), ' ')) THEN
        RAISE EXCEPTION '%', p_path USING ERRCODE = 'HF008';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION put_artifact(
    p_repo integer, p_folder text, p_name text, p_blob bigint, p_properties jsonb, p_principal text,
    p_started timestamptz, p_at timestamptz
)
RETURNS void LANGUAGE plpgsql AS $$
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

CREATE OR REPLACE FUNCTION delete_step(
    p_repo integer, p_folder text, p_name text, p_max bigint, p_principal text, p_request text,
    OUT gone bigint, OUT done boolean
)
LANGUAGE plpgsql SET plan_cache_mode = force_custom_plan AS $$
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
        SELECT b.sha256 INTO v_sha256 FROM blobs b WHERE b.id = v_blob;
        INSERT INTO events (kind, repository, path, sha256, principal, request_id, detail)
        SELECT 'delete', r.key, v_path, v_sha256, p_principal, p_request, jsonb_build_object('items', gone)
          FROM repositories r WHERE r.id = p_repo;
    END IF;
END
$$;

DROP FUNCTION transfer_page(
    boolean, boolean, integer, text, text, integer, text, text, text, bigint, integer, text, text
);
DROP FUNCTION transfer_item(boolean, integer, text, text, integer, text, text, text);

CREATE FUNCTION transfer_item(
    p_move boolean, p_from integer, p_folder text, p_name text, p_to integer, p_to_folder text, p_to_name text,
    p_principal text, p_may_overwrite boolean DEFAULT true
)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_row  artifacts;
    v_old  artifacts;
    v_kept boolean;
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
    RETURN 'done';
END
$$;

CREATE FUNCTION transfer_page(
    p_move boolean, p_fail_fast boolean, p_from integer, p_folder text, p_name text, p_to integer, p_target text,
    p_after_folder text, p_after_name text, p_max bigint, p_path_bytes integer, p_principal text, p_request text,
    p_from_limit text DEFAULT NULL, p_to_limit text DEFAULT NULL, p_overwrite_limit text DEFAULT NULL,
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
    SELECT r.redundancy INTO v_wanted FROM repositories r WHERE r.id = p_to;
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
        IF v_outcome IN ('conflict', 'length', 'forbidden') THEN
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
        INSERT INTO events (kind, repository, path, sha256, principal, request_id, detail)
        SELECT CASE WHEN p_move THEN 'move' ELSE 'copy' END, t.key, p_target,
               CASE WHEN folders = 0 AND seen = 1 THEN (SELECT b.sha256 FROM blobs b WHERE b.id = v_row.blob_id) END,
               p_principal, p_request,
               jsonb_build_object('from', concat_ws('/', f.key, nullif(v_source, '')), 'items', artifacts + folders)
          FROM repositories t, repositories f WHERE t.id = p_to AND f.id = p_from;
    END IF;
END
$$;
