-- Uploads that come at the same time are committed together.

-- Commit uploads that came at the same time, in one transaction: those that are plain, which means that their content
-- is new, their path free and its folder there. Of all others nothing is done; commit_upload does them one by one. Each
-- upload is an index into the arrays; p_replica_of says whose copy each of p_shards and p_generations is.
--
-- Locks are taken in one order: events by upload, blobs by digest, artifacts by path. It waits for nobody long
-- (55P03), and whatever error ends it leaves nothing of any upload behind.
CREATE FUNCTION commit_new_uploads(
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
      JOIN repositories r ON r.id = u.repo
     WHERE u.repo = ANY (v_repos)
       AND u.started >= clock_timestamp() - p_age_max
       AND (SELECT 1 FROM blobs b WHERE b.sha256 = u.sha256) IS NULL
       AND (SELECT 1 FROM artifacts a WHERE a.repo_id = u.repo AND a.folder = u.folder AND a.name = u.name) IS NULL
       AND (u.folder = '' OR (
            SELECT 1 FROM artifacts f
             WHERE f.repo_id = u.repo AND f.folder = regexp_replace(u.folder, '/?[^/]*$', '')
               AND f.name = substring(u.folder FROM '[^/]*$') AND f.blob_id IS NULL) IS NOT NULL);

    WITH noted AS (
        INSERT INTO events AS e (kind, upload_id, repository, path, sha256, adopted, principal, request_id)
        SELECT 'deploy', p_uploads[u.n], u.key, concat_ws('/', nullif(p_folders[u.n], ''), p_names[u.n]),
               p_sha256[u.n], true, p_principals[u.n], p_requests[u.n]
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
