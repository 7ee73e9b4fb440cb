-- Deploys of known content that come together are written together.

-- Do several times what deploy_known does, in one transaction. What is plain is written together: to a new path in a
-- folder that is there, of a repository without a quota, referring to a blob with copies enough. All else is left to
-- deploy_known, in the order given. No lock is waited for long: whoever asked then tries one after the other. p_until[n]
-- counts the confirmed generations up to those of the nth, p_limits[n] is what limit_to takes.
CREATE FUNCTION deploy_known_together(
    p_uploads    uuid[],
    p_started    timestamptz[],
    p_repos      integer[],
    p_folders    text[],
    p_names      text[],
    p_properties jsonb[],
    p_principals text[],
    p_requests   text[],
    p_blobs      bigint[],
    p_redundancy smallint[],
    p_confirmed  uuid[],
    p_until      integer[],
    p_copies_min smallint[],
    p_zones_min  smallint[],
    p_addresses  inet[],
    p_limits     text[],
    OUT items    integer[],
    OUT outcomes text[],
    OUT times    timestamptz[]
)
LANGUAGE plpgsql
SET lock_timeout = '200ms' SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_repos integer[];
    v_blobs bigint[];
    v_item  integer;
BEGIN
    -- Whoever removes folders has the lock alone, and for as long as it takes.
    v_repos := ARRAY(SELECT d.repo FROM (SELECT DISTINCT unnest(p_repos) AS repo) d
                      WHERE pg_try_advisory_xact_lock_shared(1, d.repo));
    -- As in deploy_known, against gc. Where N has to rise, the stronger lock has to come first.
    v_blobs := ARRAY(SELECT b.id FROM unnest(p_blobs, p_redundancy) AS u (blob, redundancy)
                       JOIN blobs b ON b.id = u.blob AND b.redundancy >= u.redundancy
                      ORDER BY b.sha256 FOR SHARE OF b);
    WITH plain AS (
        SELECT u.n, r.key, b.sha256
          FROM (SELECT DISTINCT ON (repo, folder, name) *
                  FROM unnest(p_repos, p_folders, p_names, p_blobs, p_redundancy, p_copies_min, p_zones_min, p_until)
                       WITH ORDINALITY AS u (repo, folder, name, blob, redundancy, copies_min, zones_min, until, n)
                 ORDER BY repo, folder, name, n) AS u
          JOIN repositories r ON r.id = u.repo AND r.rclass <> 'virtual' AND r.quota_bytes IS NULL
          JOIN blobs b ON b.id = u.blob AND b.redundancy >= u.redundancy
         WHERE u.repo = ANY (v_repos)
           AND u.blob = ANY (v_blobs)
           AND shows(r.paths_regex, u.folder, u.name)
           AND (SELECT 1 FROM artifacts a
                 WHERE a.repo_id = u.repo AND a.folder = u.folder AND a.name = u.name) IS NULL
           AND (u.folder = '' OR (
                SELECT 1 FROM artifacts f
                 WHERE f.repo_id = u.repo AND f.folder = regexp_replace(u.folder, '/?[^/]*$', '')
                   AND f.name = substring(u.folder FROM '[^/]*$') AND f.blob_id IS NULL) IS NOT NULL)
           AND (b.size = 0 OR NOT (SELECT history_is_lost()) AND (
                SELECT count(DISTINCT g.shard_id) >= greatest(b.redundancy, u.copies_min)
                       AND count(DISTINCT g.zone) >= u.zones_min
                  FROM good_replicas(u.blob) g
                 WHERE g.generation = ANY (p_confirmed[coalesce(p_until[u.n - 1], 0) + 1:u.until])))
    ), noted AS (
        INSERT INTO events AS e (kind, upload_id, repository, path, sha256, adopted, principal, request_id, address)
        SELECT 'deploy', p_uploads[n], key, concat_ws('/', nullif(p_folders[n], ''), p_names[n]), sha256, false,
               p_principals[n], p_requests[n], p_addresses[n]
          FROM plain
        ON CONFLICT (upload_id) DO NOTHING
        RETURNING array_position(p_uploads, e.upload_id) AS n, e.at
    ), put AS (
        INSERT INTO artifacts (repo_id, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                               updated_at, properties)
        SELECT p_repos[n], p_folders[n], p_names[n], p_blobs[n], at, p_principals[n], p_started[n], p_principals[n], at,
               p_properties[n]
          FROM noted
    )
    SELECT array_agg(n), array_agg('linked'::text), array_agg(at) INTO items, outcomes, times FROM noted;
    FOR v_item IN 1..cardinality(p_uploads) LOOP
        CONTINUE WHEN v_item = ANY (items);
        SELECT array_append(items, v_item), array_append(outcomes, d.outcome), array_append(times, d.created_at)
          INTO items, outcomes, times
          FROM limit_to(p_limits[v_item], p_repos[v_item]) AS r (id),
               deploy_known(p_uploads[v_item], p_started[v_item], r.id, p_folders[v_item], p_names[v_item],
                            p_properties[v_item], p_principals[v_item], p_requests[v_item], p_blobs[v_item],
                            p_redundancy[v_item], p_confirmed[coalesce(p_until[v_item - 1], 0) + 1:p_until[v_item]],
                            p_copies_min[v_item], p_zones_min[v_item], p_addresses[v_item]) AS d;
    END LOOP;
END
$$;
