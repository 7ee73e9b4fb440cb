-- Downloads are counted.

ALTER TABLE artifacts ADD COLUMN downloads bigint NOT NULL DEFAULT 0;
ALTER TABLE artifacts ADD COLUMN downloaded_at timestamptz;
ALTER TABLE artifacts ADD COLUMN downloaded_by text;

-- Copy or move one artifact or folder to p_to_folder/p_to_name of p_to, as it is, with its properties. Of a folder only
-- the folder. Outcomes: 'done'; 'same', when it is there already; 'gone', when there is nothing to be copied; 'conflict',
-- when a folder is where an artifact should be, or the other way round. What was in the place goes to the trash.
-- The caller shares the locks of both repositories.
CREATE OR REPLACE FUNCTION transfer_item(
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
