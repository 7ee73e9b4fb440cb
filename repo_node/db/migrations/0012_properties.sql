-- Properties are set, changed and searched; what came back from the trash is told apart by a time of its own,
-- because updated_at changes with the properties.

ALTER TABLE artifacts ADD COLUMN restored_at timestamptz;
UPDATE artifacts SET restored_at = updated_at WHERE blob_id IS NOT NULL AND created_at < updated_at;

-- Partial, so that an upload without properties pays nothing for it.
CREATE INDEX artifacts_by_property ON artifacts USING gin (properties) WHERE properties <> '{}';

-- Bring one thing back from the trash, to p_folder/p_name of p_repo. Outcomes: 'restored'; 'exists',
-- when an artifact is there and p_replace is false (with it, that one goes to the trash); 'gone', when
-- it is in the trash no more. SQLSTATE HF001 as in commit_upload.
CREATE OR REPLACE FUNCTION restore_trash(
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
    DELETE FROM trash WHERE id = p_trash;
    INSERT INTO events (kind, repository, path, sha256, principal, request_id, detail)
    SELECT 'restore', v_key, concat_ws('/', nullif(p_folder, ''), p_name), b.sha256, p_principal, p_request,
           jsonb_build_object('from', concat_ws('/', v_row.repository, nullif(v_row.folder, ''), v_row.name))
      FROM blobs b WHERE b.id = v_row.blob_id;
    RETURN 'restored';
END
$$;

-- Part of a tree: an artifact or a folder, then all that lies in it, by path, behind p_after_folder/p_after_name;
-- at most p_max rows. The tree of '' is the whole repository. Between a folder's path and what lies deeper, paths
-- that only begin alike are sorted ('a', 'a-b', 'a/b'): hence three ranges.
CREATE FUNCTION tree_page(
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
BEGIN
    RETURN QUERY SELECT a.* FROM artifacts a
      WHERE a.repo_id = p_repo AND a.folder = p_folder AND a.name = p_name
        AND (a.folder, a.name) > (p_after_folder, p_after_name);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_left := v_left - v_count;
    RETURN QUERY SELECT a.* FROM artifacts a
      WHERE a.repo_id = p_repo AND a.folder = v_path AND (a.folder, a.name) > (p_after_folder, p_after_name)
      ORDER BY a.folder, a.name LIMIT v_left;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_left := v_left - v_count;
    IF v_left > 0 THEN
        RETURN QUERY SELECT a.* FROM artifacts a
          WHERE a.repo_id = p_repo AND (a.folder, a.name) > (v_low, CASE WHEN v_inside THEN p_after_name ELSE '' END)
            AND a.folder < CASE WHEN v_path = '' THEN repeat(chr(1114111), 100) ELSE v_path || '0' END
          ORDER BY a.folder, a.name LIMIT v_left;
    END IF;
END
$$;

-- Change the properties of an artifact or a folder or, with p_recursive, of all in its tree, a page at a time:
-- those named in p_drop go, those in p_set get new values. seen is less than p_max on the last page; the next one is
-- behind last_folder/last_name. HF007: an item would have more than p_bytes_max of properties; nothing was done.
CREATE FUNCTION change_properties(
    p_repo integer, p_folder text, p_name text, p_recursive boolean, p_after_folder text, p_after_name text,
    p_max bigint, p_set jsonb, p_drop text[], p_bytes_max integer, p_principal text, p_request text,
    OUT seen bigint, OUT last_folder text, OUT last_name text
)
LANGUAGE plpgsql AS $$
DECLARE
    v_old     jsonb;
    v_new     jsonb;
    v_changed bigint := 0;
BEGIN
    seen := 0;
    -- As whoever adds to folders: who takes a folder away locks rows in the other order, but keeps all of them out.
    PERFORM pg_advisory_xact_lock_shared(1, p_repo);
    FOR last_folder, last_name IN
        SELECT t.folder, t.name
          FROM tree_page(p_repo, p_folder, p_name, p_after_folder, p_after_name,
                         CASE WHEN p_recursive THEN p_max ELSE 1 END) t
    LOOP
        seen := seen + 1;
        SELECT a.properties, (a.properties - p_drop) || p_set INTO v_old, v_new FROM artifacts a
          WHERE a.repo_id = p_repo AND a.folder = last_folder AND a.name = last_name FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND OR v_new = v_old;
        IF octet_length(v_new::text) > p_bytes_max THEN
            RAISE EXCEPTION '%', concat_ws('/', nullif(last_folder, ''), last_name) USING ERRCODE = 'HF007';
        END IF;
        UPDATE artifacts a SET properties = v_new, updated_at = now()
          WHERE a.repo_id = p_repo AND a.folder = last_folder AND a.name = last_name;
        v_changed := v_changed + 1;
    END LOOP;
    IF v_changed > 0 THEN
        INSERT INTO events (kind, repository, path, principal, request_id, detail)
        SELECT 'properties', r.key, concat_ws('/', nullif(p_folder, ''), p_name), p_principal, p_request,
               jsonb_build_object('items', v_changed, 'set', p_set, 'dropped', to_jsonb(p_drop))
          FROM repositories r WHERE r.id = p_repo;
    END IF;
END
$$;
