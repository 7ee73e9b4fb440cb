-- A copy or a move that was asked for again, because the answer to the first time was lost, left a second event.

DROP FUNCTION transfer_page(
    boolean, boolean, integer, text, text, integer, text, text, text, bigint, integer, text, text, text, text, text, inet
);
-- Copy or move a page of a tree (tree_page) to p_target in p_to: each artifact whole, the folders of a move stay until
-- prune_folders. What cannot be done is told in failed and reasons and hinders nothing else, but with p_fail_fast
-- it is the last of this page, and stopped says so. Safe to repeat: of calls with one p_event, which is not NULL, the first
-- that does something leaves an event.
CREATE FUNCTION transfer_page(
    p_move boolean, p_fail_fast boolean, p_from integer, p_folder text, p_name text, p_to integer, p_target text,
    p_after_folder text, p_after_name text, p_max bigint, p_path_bytes integer, p_principal text, p_request text,
    p_from_limit text DEFAULT NULL, p_to_limit text DEFAULT NULL, p_overwrite_limit text DEFAULT NULL,
    p_address inet DEFAULT NULL, p_event uuid DEFAULT NULL,
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
        INSERT INTO events (kind, upload_id, repository, path, sha256, principal, request_id, address, detail)
        SELECT CASE WHEN p_move THEN 'move' ELSE 'copy' END, p_event, t.key, p_target,
               CASE WHEN folders = 0 AND seen = 1 THEN (SELECT b.sha256 FROM blobs b WHERE b.id = v_row.blob_id) END,
               p_principal, p_request, p_address,
               jsonb_build_object('from', concat_ws('/', f.key, nullif(v_source, '')), 'items', artifacts + folders)
          FROM repositories t, repositories f WHERE t.id = p_to AND f.id = p_from
        ON CONFLICT (upload_id) DO NOTHING;
    END IF;
END
$$;
