-- Artifacts and folders are copied and moved, in steps.

-- Folders that are being copied or moved, by the digest of what was asked, and where to: whoever asks again because the
-- answer was lost goes on, rather than into the folder that the first attempt made. After a day a row means nothing.
CREATE TABLE transfers (
    id          bytea PRIMARY KEY CHECK (length(id) = 32),
    target      text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now()
);

-- Copy or move one artifact or folder to p_to_folder/p_to_name of p_to, as it is, with its properties. Of a folder only
-- the folder. Outcomes: 'done'; 'same', when it is there already; 'gone', when there is nothing to be copied; 'conflict',
-- when a folder is where an artifact should be, or the other way round. What was in the place goes to the trash.
-- The caller shares the locks of both repositories.
CREATE FUNCTION transfer_item(
    p_move boolean, p_from integer, p_folder text, p_name text, p_to integer, p_to_folder text, p_to_name text,
    p_principal text
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
                               properties)
        VALUES (p_to, p_to_folder, p_to_name, v_row.blob_id, v_row.created_at, v_row.created_by, v_row.modified_at,
                v_row.modified_by, v_row.properties)
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

-- Copy or move a page of a tree (tree_page) to p_target in p_to: each artifact whole, the folders of a move stay until
-- prune_folders. What cannot be done is told in failed and reasons and hinders nothing else, but with p_fail_fast
-- it is the last of this page, and stopped says so. Safe to repeat.
CREATE FUNCTION transfer_page(
    p_move boolean, p_fail_fast boolean, p_from integer, p_folder text, p_name text, p_to integer, p_target text,
    p_after_folder text, p_after_name text, p_max bigint, p_path_bytes integer, p_principal text, p_request text,
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
        v_to := concat_ws('/', nullif(v_row.folder, ''), v_row.name);
        v_to := concat_ws('/', nullif(p_target, ''),
                          nullif(substr(v_to, length(v_source) + CASE WHEN v_source = '' THEN 1 ELSE 2 END), ''));
        IF octet_length(v_to) > p_path_bytes THEN
            v_outcome := 'length';
        ELSE
            v_outcome := transfer_item(p_move, p_from, v_row.folder, v_row.name, p_to,
                                       coalesce(substring(v_to FROM '^(.*)/[^/]*$'), ''),
                                       substring(v_to FROM '[^/]*$'), p_principal);
        END IF;
        IF v_outcome IN ('conflict', 'length') THEN
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

-- Of the folders with p_low <= folder < p_high that lie before p_before_folder/p_before_name, take away, last first,
-- those in which nothing lies and which are at the target of a move too; p_only names the only one of them that may go.
CREATE FUNCTION prune_folders(
    p_repo integer, p_low text, p_high text, p_only text, p_source text, p_to integer, p_target text,
    p_before_folder text, p_before_name text, p_max bigint, OUT seen bigint, OUT last_folder text, OUT last_name text
)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    v_path text;
    v_to   text;
BEGIN
    seen := 0;
    PERFORM pg_advisory_xact_lock(1, p_repo);
    FOR last_folder, last_name IN
        SELECT a.folder, a.name FROM artifacts a
         WHERE a.repo_id = p_repo AND a.folder >= p_low AND a.folder < p_high AND a.blob_id IS NULL
           AND (a.folder, a.name) < (p_before_folder, p_before_name) AND (p_only IS NULL OR a.name = p_only)
         ORDER BY a.folder DESC, a.name DESC LIMIT p_max
    LOOP
        seen := seen + 1;
        v_path := concat_ws('/', nullif(last_folder, ''), last_name);
        v_to := concat_ws('/', nullif(p_target, ''),
                          nullif(substr(v_path, length(p_source) + CASE WHEN p_source = '' THEN 1 ELSE 2 END), ''));
        DELETE FROM artifacts a
         WHERE a.repo_id = p_repo AND a.folder = last_folder AND a.name = last_name AND a.blob_id IS NULL
           AND NOT EXISTS (SELECT 1 FROM artifacts c WHERE c.repo_id = p_repo AND c.folder = v_path)
           AND EXISTS (SELECT 1 FROM artifacts c
                        WHERE c.repo_id = p_to AND c.folder = coalesce(substring(v_to FROM '^(.*)/[^/]*$'), '')
                          AND c.name = substring(v_to FROM '[^/]*$') AND c.blob_id IS NULL);
    END LOOP;
END
$$;
