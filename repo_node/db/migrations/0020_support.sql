-- What is stored is counted now and then, and support bundles are kept in the database.

CREATE TABLE storage_summary (
    only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    calculated_at  timestamptz NOT NULL,
    binaries       bigint NOT NULL,
    binaries_bytes bigint NOT NULL,
    trash_files    bigint NOT NULL,
    trash_bytes    bigint NOT NULL,
    repositories   jsonb NOT NULL
);

CREATE TABLE support_bundles (
    id           text PRIMARY KEY COLLATE "C",
    name         text NOT NULL,
    description  text NOT NULL,
    state        text NOT NULL DEFAULT 'in progress' CHECK (state IN ('in progress', 'success', 'failed')),
    node         text NOT NULL,
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    gives_up_at  timestamptz NOT NULL,
    done         integer NOT NULL DEFAULT 0,
    total        integer NOT NULL DEFAULT 0,
    doing        text NOT NULL DEFAULT '',
    bytes        bigint NOT NULL DEFAULT 0
);
CREATE TABLE support_bundle_parts (
    bundle_id  text NOT NULL COLLATE "C" REFERENCES support_bundles (id) ON DELETE CASCADE,
    position   integer NOT NULL,
    data       bytea NOT NULL,
    PRIMARY KEY (bundle_id, position)
);
ALTER TABLE support_bundle_parts ALTER COLUMN data SET STORAGE EXTERNAL;

-- Count what is stored, however long that takes; false, and nothing is counted, while somebody else is at it.
CREATE FUNCTION calculate_storage_summary()
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(3, 2) THEN
        RETURN false;
    END IF;
    INSERT INTO storage_summary (calculated_at, binaries, binaries_bytes, trash_files, trash_bytes, repositories)
    SELECT now(), b.files, b.bytes, t.files, t.bytes, r.counted
      FROM (SELECT count(*) AS files, coalesce(sum(size), 0)::bigint AS bytes FROM blobs) b,
           (SELECT count(*) AS files, coalesce(sum(b.size), 0)::bigint AS bytes
              FROM trash t JOIN blobs b ON b.id = t.blob_id) t,
           (SELECT coalesce(jsonb_object_agg(u.repo_id, jsonb_build_array(u.folders, u.files, u.bytes)), '{}') AS counted
              FROM (SELECT a.repo_id, count(*) - count(a.blob_id) AS folders, count(a.blob_id) AS files,
                           coalesce(sum(b.size), 0)::bigint AS bytes
                      FROM artifacts a LEFT JOIN blobs b ON b.id = a.blob_id GROUP BY a.repo_id) u) r
    ON CONFLICT (only_row) DO UPDATE
       SET calculated_at = excluded.calculated_at, binaries = excluded.binaries,
           binaries_bytes = excluded.binaries_bytes, trash_files = excluded.trash_files,
           trash_bytes = excluded.trash_bytes, repositories = excluded.repositories;
    RETURN true;
END
$$;

-- Note that a support bundle is being made; false while another one is. One whose node has not ended it in time failed.
CREATE FUNCTION begin_support_bundle(
    p_id text, p_name text, p_description text, p_node text, p_seconds double precision, p_principal text,
    p_request_id text, p_address inet
)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(3, 3);
    UPDATE support_bundles b SET state = 'failed', doing = format('%s did not end it in time', b.node)
     WHERE b.state = 'in progress' AND b.gives_up_at < clock_timestamp();
    IF EXISTS (SELECT 1 FROM support_bundles b WHERE b.state = 'in progress' AND b.id <> p_id) THEN
        RETURN false;
    END IF;
    INSERT INTO support_bundles (id, name, description, node, created_by, gives_up_at)
    VALUES (p_id, p_name, p_description, p_node, p_principal, clock_timestamp() + make_interval(secs => p_seconds))
    ON CONFLICT (id) DO NOTHING;
    IF FOUND THEN
        INSERT INTO events (kind, principal, request_id, address, detail)
        VALUES ('support_bundle', p_principal, p_request_id, p_address, jsonb_build_object('bundle', p_id));
    END IF;
    RETURN true;
END
$$;

-- Note how a support bundle ended, and keep the last p_kept alone; false when it is gone, or counts as failed.
CREATE FUNCTION end_support_bundle(p_id text, p_state text, p_doing text, p_bytes bigint, p_kept integer)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(3, 3);
    UPDATE support_bundles b SET state = p_state, doing = p_doing, bytes = p_bytes, done = b.total
     WHERE b.id = p_id AND b.state IN ('in progress', p_state);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM support_bundles b WHERE b.id IN (
        SELECT o.id FROM support_bundles o WHERE o.state <> 'in progress' ORDER BY o.created_at DESC OFFSET p_kept
    );
    RETURN true;
END
$$;
