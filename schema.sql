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
    stopped_at    timestamptz,
    -- The schema that the node's release was written for; null for one that did not tell.
    schema_version integer,
    -- The incarnation that is being taken out of service, and the one that an operator has asked to stop.
    leaving       uuid,
    stop_asked    uuid
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
    created_at  timestamptz NOT NULL DEFAULT now(),
    state_since timestamptz NOT NULL DEFAULT now(),
    state_reason text NOT NULL DEFAULT '',
    -- An administrator has said that another disk takes this one's place at its path.
    replaced    boolean NOT NULL DEFAULT false,
    -- An administrator has set the weight: what the node's configuration says of it counts no more.
    weight_set  boolean NOT NULL DEFAULT false,
    -- Its part of its file system's capacity, as its node last found it: other shards of the node may share that.
    share_bytes bigint
);

-- Apart from shards, because every new replica locks its shard's row against deletion and this row
-- changes at each heartbeat.
CREATE TABLE shard_space (
    shard_id        smallint PRIMARY KEY REFERENCES shards (id),
    capacity_bytes  bigint NOT NULL,
    free_bytes      bigint NOT NULL,
    writable        boolean NOT NULL,
    reported_at     timestamptz NOT NULL DEFAULT now(),
    silent_since    timestamptz,
    -- Why it takes no writes, in its owner's words.
    reason          text NOT NULL DEFAULT ''
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
    id                   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name                 text NOT NULL UNIQUE COLLATE "C",
    -- '!' where no password fits.
    password_hash        text NOT NULL,
    is_admin             boolean NOT NULL DEFAULT false,
    is_enabled           boolean NOT NULL DEFAULT true,
    created_at           timestamptz NOT NULL DEFAULT now(),
    email                text NOT NULL DEFAULT '',
    password_changed_at  timestamptz NOT NULL DEFAULT now(),
    -- Nothing else is allowed before that.
    must_change_password boolean NOT NULL DEFAULT false
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
    revoked_at    timestamptz,
    -- The token that made it: it ends no later, and is revoked with it.
    parent_id     bigint REFERENCES tokens (id),
    -- Of one that is renewed: a refresh gives it other secrets, and an end so far away.
    lifetime      interval,
    refresh_sha256 bytea UNIQUE CHECK (length(refresh_sha256) = 32),
    refreshable_until timestamptz,
    CONSTRAINT tokens_refreshable CHECK (
        (refresh_sha256 IS NULL) = (refreshable_until IS NULL) AND (refresh_sha256 IS NULL OR expires_at IS NOT NULL)
        AND (refresh_sha256 IS NULL) = (lifetime IS NULL))
);
CREATE INDEX tokens_of_user ON tokens (user_id);
CREATE INDEX tokens_of_parent ON tokens (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX tokens_by_end ON tokens (least(revoked_at, greatest(expires_at, refreshable_until)));

-- Refresh tokens that were used: whoever brings one again has it from somebody else.
CREATE TABLE used_refresh_tokens (
    sha256    bytea PRIMARY KEY CHECK (length(sha256) = 32),
    token_id  bigint NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    used_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX used_refresh_tokens_of_token ON used_refresh_tokens (token_id);
CREATE INDEX used_refresh_tokens_by_age ON used_refresh_tokens (used_at);

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

-- Wrong logins, by the name that was given and by the address they came from; what is old means nothing.
CREATE TABLE login_failures (
    kind      text NOT NULL CHECK (kind IN ('user', 'address')),
    name      text NOT NULL COLLATE "C",
    failures  integer NOT NULL DEFAULT 1,
    last_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, name)
);
CREATE INDEX login_failures_by_age ON login_failures (last_at);

-- ---------------------------------------------------------------- content

CREATE TABLE repositories (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key           text NOT NULL UNIQUE COLLATE "C",
    rclass        text NOT NULL DEFAULT 'local' CHECK (rclass IN ('local', 'virtual')),
    package_type  text NOT NULL DEFAULT 'generic' CHECK (package_type IN ('generic')),
    description   text NOT NULL DEFAULT '',
    redundancy    smallint CHECK (redundancy BETWEEN 1 AND 16),
    created_at    timestamptz NOT NULL DEFAULT now(),
    created_by    text NOT NULL,
    -- Whether what is deleted or overwritten here is kept in the trash for a while.
    trash         boolean NOT NULL DEFAULT true,
    -- What is computed of each upload to it, beside what its client declares.
    digests       text[] NOT NULL DEFAULT '{sha256,sha1,md5}'
                  CHECK (digests @> '{sha256}' AND digests <@ '{sha256,sha1,md5}'),
    notes         text NOT NULL DEFAULT '',
    layout        text NOT NULL DEFAULT 'simple-default',
    includes_pattern text NOT NULL DEFAULT '**/*',
    excludes_pattern text NOT NULL DEFAULT '',
    -- Both as one expression that paths are compared with; null where nothing is kept out.
    paths_regex   text,
    checksum_policy text NOT NULL DEFAULT 'client-checksums'
                  CHECK (checksum_policy IN ('client-checksums', 'server-generated-checksums')),
    blacked_out   boolean NOT NULL DEFAULT false,
    -- Whether a virtual repository looks here before it looks into its members without.
    priority      boolean NOT NULL DEFAULT false,
    allow_overwrite boolean NOT NULL DEFAULT true,
    allow_delete  boolean NOT NULL DEFAULT true,
    quota_bytes   bigint CHECK (quota_bytes >= 0),
    -- Where an upload to a virtual repository goes.
    default_deployment_id integer REFERENCES repositories (id)
);

-- What a virtual repository shows, in the order in which it is looked through.
CREATE TABLE repository_members (
    virtual_id    integer NOT NULL REFERENCES repositories (id),
    position      smallint NOT NULL,
    member_id     integer NOT NULL REFERENCES repositories (id),
    PRIMARY KEY (virtual_id, position),
    UNIQUE (virtual_id, member_id)
);
CREATE INDEX repository_members_of ON repository_members (member_id);

-- The bytes of the artifacts in a repository with a quota: what was counted, and what has changed since, which a job
-- adds to it. Without a row here its artifacts have yet to be counted.
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

CREATE TABLE blobs (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uid            uuid NOT NULL,
    sha256         bytea NOT NULL UNIQUE CHECK (length(sha256) = 32),
    -- NULL where nobody has wanted it yet.
    sha1           bytea CHECK (length(sha1) = 20),
    md5            bytea CHECK (length(md5) = 16),
    size           bigint NOT NULL CHECK (size >= 0),
    redundancy     smallint NOT NULL CHECK (redundancy BETWEEN 1 AND 16),
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- xxh3-64 of every 1 MiB block; stored plainly so that a range reads only its slice.
    block_digests  bytea NOT NULL,
    CONSTRAINT blobs_block_digests_fit CHECK (length(block_digests) = 8 * ((size + 1048575) / 1048576))
);
ALTER TABLE blobs ALTER COLUMN block_digests SET STORAGE EXTERNAL;
-- Who deploys known content may name it so. Hashes, because they are looked up whole: a quarter of a tree's size.
CREATE INDEX blobs_sha1 ON blobs USING hash (sha1);
CREATE INDEX blobs_md5 ON blobs USING hash (md5);

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
    -- When it last came back from the trash; it means nothing when it is not after created_at.
    restored_at  timestamptz,
    -- Added to by nodes now and then, many at once.
    downloads    bigint NOT NULL DEFAULT 0,
    downloaded_at timestamptz,
    downloaded_by text,
    PRIMARY KEY (repo_id, folder, name)
);
CREATE INDEX artifacts_of_blob ON artifacts (blob_id) WHERE blob_id IS NOT NULL;
-- Partial, so that an upload without properties pays nothing for it.
CREATE INDEX artifacts_by_property ON artifacts USING gin (properties) WHERE properties <> '{}';
-- For searches by name and by time; the latter costs next to nothing because rows of one time lie together. Names are
-- compared as patterns are: an order that listings want too would tempt a kept plan to read the whole index for one.
CREATE INDEX artifacts_by_name ON artifacts (name text_pattern_ops);
-- Most names are there once, some a hundred thousand times, and a plan for all of them would take any for rare: this index
-- for as good as that of the places. Postgres is told that each is there ten times.
ALTER TABLE artifacts ALTER COLUMN name SET (n_distinct = -0.1);
CREATE INDEX artifacts_by_time ON artifacts USING brin (created_at, modified_at, downloaded_at)
    WITH (pages_per_range = 32, autosummarize = on);

-- Audit and idempotency in one: an upload's id is unique, so a repeated commit finds the first.
CREATE TABLE events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind        text NOT NULL,
    -- Of what may be asked for again though it was done: an upload's, or that of a page of a copy or a move.
    upload_id   uuid UNIQUE,
    repository  text COLLATE "C",
    path        text COLLATE "C",
    sha256      bytea,
    adopted     boolean,
    principal   text NOT NULL,
    request_id  text NOT NULL,
    detail      jsonb,
    -- Of the client, as the node saw it or a trusted proxy told; NULL for what the cluster does by itself.
    address     inet
);

-- ---------------------------------------------------------------- work for the maintenance jobs

-- Blobs that lack copies. Whoever claims one sets due_at to when the claim ends, whoever gives up to when it is
-- worth another try: what is due can be read off the index, fewest good copies first. urgency is their number
-- when it was last counted, and 99 where there is none to copy from. renewed_at tells a claimer who is about to
-- take the row away that somebody has asked anew.
CREATE TABLE repair_queue (
    blob_id    bigint PRIMARY KEY REFERENCES blobs (id),
    reason     text NOT NULL CHECK (reason IN ('short_write', 'suspect', 'redundancy', 'missing', 'corrupt', 'lost',
                                               'drain', 'census', 'misplaced')),
    queued_at  timestamptz NOT NULL DEFAULT now(),
    urgency    smallint NOT NULL DEFAULT 1,
    due_at     timestamptz NOT NULL DEFAULT now(),
    renewed_at timestamptz NOT NULL DEFAULT now(),
    claim      uuid,
    attempts   integer NOT NULL DEFAULT 0,
    outcome    text,
    size       bigint NOT NULL DEFAULT 0
);
CREATE INDEX repair_queue_order ON repair_queue (urgency, due_at);

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
-- Folders that are being copied or moved, by the digest of what was asked, and where to: whoever asks again because the
-- answer was lost goes on, rather than into the folder that the first attempt made. After a day a row means nothing.
CREATE TABLE transfers (
    id          bytea PRIMARY KEY CHECK (length(id) = 32),
    target      text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now()
);

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

-- The last time of each cron expression that has been served; the expression's first sight, before that.
CREATE TABLE schedules (
    job        text PRIMARY KEY COLLATE "C",
    cron       text NOT NULL,
    served_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Walks over all replicas of a shard whose state calls for it, in bounded steps that any node takes:
-- 'lost' and 'drain' ask for repairs, 'return' doubts the replicas of a shard that comes back, 'forget' drops
-- those of one that never will.
CREATE TABLE shard_walks (
    shard_id    smallint PRIMARY KEY REFERENCES shards (id),
    kind        text NOT NULL CHECK (kind IN ('lost', 'drain', 'return', 'forget')),
    cursor      uuid,
    walked      bigint NOT NULL DEFAULT 0,
    kept_back   bigint NOT NULL DEFAULT 0,
    passes      integer NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz NOT NULL DEFAULT now(),
    -- Of kept_back, those of blobs without a live copy on a shard that is not lost.
    last_copies bigint NOT NULL DEFAULT 0,
    -- How many of these an administrator lets a 'forget' drop.
    give_up     bigint NOT NULL DEFAULT 0
);

-- The walk over all blobs that finds out how many copies each should have. Each change that may raise
-- the number adds to asked; a pass serves what was asked before it began, and is repeated once for uploads that were
-- being committed with the number of before.
CREATE TABLE census (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cursor      bigint NOT NULL DEFAULT 0,
    asked       bigint NOT NULL DEFAULT 1,
    serving     bigint NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now(),
    repeated    bigint NOT NULL DEFAULT 0
);

-- How far each job has walked over the replicas of a shard, and for which ring.
CREATE TABLE shard_cursors (
    shard_id     smallint NOT NULL REFERENCES shards (id),
    job          text NOT NULL COLLATE "C",
    cursor       uuid,
    ring         text NOT NULL DEFAULT '',
    finished_at  timestamptz,
    PRIMARY KEY (shard_id, job)
);

INSERT INTO census DEFAULT VALUES;

-- ---------------------------------------------------------------- what the shards' owners found

-- How far each pass over a shard has come. Replicas older than covered_since have been read since then.
CREATE TABLE scrubs (
    shard_id        smallint NOT NULL REFERENCES shards (id),
    kind            text NOT NULL CHECK (kind IN ('blocks', 'proof')),
    started_at      timestamptz NOT NULL DEFAULT now(),
    position        uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    done_replicas   bigint NOT NULL DEFAULT 0,
    done_bytes      bigint NOT NULL DEFAULT 0,
    total_replicas  bigint,
    total_bytes     bigint,
    finished_at     timestamptz,
    covered_since   timestamptz,
    PRIMARY KEY (shard_id, kind)
);

-- Files that are to be, or have been (moved_at), moved to a shard's quarantine; each has a condemned
-- replica. Written before the file moves, so that whoever dies in between leaves the order behind.
CREATE TABLE quarantine (
    shard_id      smallint NOT NULL REFERENCES shards (id),
    generation    uuid NOT NULL,
    sha256        bytea NOT NULL CHECK (length(sha256) = 32),
    size          bigint,
    reason        text NOT NULL CHECK (reason IN ('bytes', 'size', 'unreadable', 'stray')),
    condemned_at  timestamptz NOT NULL DEFAULT now(),
    moved_at      timestamptz,
    PRIMARY KEY (shard_id, generation)
);
CREATE INDEX quarantine_by_age ON quarantine (shard_id, moved_at);
CREATE INDEX replicas_suspect ON replicas (shard_id, generation) WHERE state = 'suspect';

-- Things on a shard that no row knows, by their path and inode, and since when they have been seen there.
CREATE TABLE sightings (
    shard_id       smallint NOT NULL REFERENCES shards (id),
    path           bytea NOT NULL,
    inode          bigint NOT NULL,
    first_seen_at  timestamptz NOT NULL DEFAULT now(),
    last_seen_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard_id, path)
);

-- Comparisons of a shard's files with the rows: asked for, under way, done. The shard's owner does them,
-- in the order of their ids; whoever restarts begins the one it was at anew.
CREATE TABLE checks (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request       uuid NOT NULL,
    shard_id      smallint NOT NULL REFERENCES shards (id),
    dry_run       boolean NOT NULL DEFAULT false,
    repair        boolean NOT NULL DEFAULT false,
    rebuild       boolean NOT NULL DEFAULT false,
    principal     text NOT NULL,
    requested_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at    timestamptz,
    finished_at   timestamptz,
    done          bigint NOT NULL DEFAULT 0,
    total         bigint,
    report        jsonb,
    error         text
);
CREATE INDEX checks_of_shard ON checks (shard_id, id);
CREATE INDEX checks_of_request ON checks (request);

-- Backups of this database that nodes have written to shards of their own.
CREATE TABLE backups (
    shard_id  smallint NOT NULL REFERENCES shards (id),
    name      text NOT NULL,
    bytes     bigint NOT NULL,
    taken_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard_id, name)
);

-- What is stored, by repository, as it was last counted: each with folders, files and bytes, by its id. Only for people
-- who look: a count reads all artifacts, and took seconds.
CREATE TABLE storage_summary (
    only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    calculated_at  timestamptz NOT NULL,
    binaries       bigint NOT NULL,
    binaries_bytes bigint NOT NULL,
    trash_files    bigint NOT NULL,
    trash_bytes    bigint NOT NULL,
    repositories   jsonb NOT NULL
);

-- What helps to find out what is wrong, packed by a node when asked, in parts. Here rather than on shards: whoever wants
-- one may want it because of them, and any node can give it. What is being done stands in doing, then why it failed.
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


-- ---------------------------------------------------------------- functions

CREATE FUNCTION node_is_up(p_node nodes)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT p_node.stopped_at IS NULL AND p_node.heartbeat_at > clock_timestamp() - make_interval(secs => coalesce(
        (SELECT (value #>> '{}')::double precision FROM settings WHERE key = 'node_down_seconds'), 10))
$$;

-- A blob's live replicas, wherever they are. OFFSET keeps the planner from joining inside: as long as a new table has no
-- statistics, it would read a shard's whole index to find the few rows of one blob.
CREATE FUNCTION live_replicas(p_blob bigint)
RETURNS TABLE (shard_id smallint, generation uuid)
LANGUAGE sql STABLE AS $$
    SELECT r.shard_id, r.generation FROM replicas r WHERE r.blob_id = p_blob AND r.state = 'live' OFFSET 0
$$;

-- The weight of a new shard with so much capacity: what the other shards have on the median for as many bytes, so that
-- weights stay near 1 whatever disks are made of. By hundredths: disks of one kind differ by a few blocks.
CREATE FUNCTION capacity_weight(p_share_bytes bigint)
RETURNS double precision LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_share_bytes IS NULL OR count(*) = 0 THEN 1 ELSE round(least(10, greatest(0.1, p_share_bytes
               / percentile_cont(0.5) WITHIN GROUP (ORDER BY s.share_bytes / s.weight)))::numeric, 2) END
      FROM shards s WHERE s.share_bytes > 0 AND s.state <> 'lost'
$$;

-- Make a node's process the owner of a shard. Outcomes: 'claimed'; 'in_use' (by another living node, or by this one at
-- another path: one process claims a shard at one path alone, however many of its directories say that they are this
-- shard); 'fenced' (the process is not that node any more).
--
-- Only a row that is really made takes one of the few ids. New shards are made one after another: each is weighed
-- against those before it. A weight that nobody gave is found once, from its capacity.
CREATE FUNCTION claim_shard(
    p_uid uuid, p_node text, p_path text, p_weight double precision, p_incarnation uuid, p_share_bytes bigint
)
RETURNS TABLE (shard smallint, outcome text) LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM shards s WHERE s.uid = p_uid) THEN
        PERFORM pg_advisory_xact_lock(3, 1);
        INSERT INTO shards (uid, node_id, path, weight, owner, share_bytes)
        SELECT p_uid, n.id, p_path, coalesce(p_weight, capacity_weight(p_share_bytes)), p_incarnation, p_share_bytes
          FROM nodes n WHERE n.id = p_node AND n.incarnation = p_incarnation
           AND NOT EXISTS (SELECT 1 FROM shards s WHERE s.uid = p_uid);
    END IF;
    RETURN QUERY
    UPDATE shards s
       SET node_id = n.id, path = p_path, owner = n.incarnation, share_bytes = coalesce(p_share_bytes, s.share_bytes),
           weight = CASE WHEN s.weight_set OR p_weight IS NULL THEN s.weight ELSE p_weight END
      FROM nodes n
     WHERE s.uid = p_uid AND n.id = p_node AND n.incarnation = p_incarnation
       AND CASE WHEN s.node_id = n.id THEN s.owner IS DISTINCT FROM n.incarnation OR s.path = p_path
                ELSE NOT EXISTS (SELECT 1 FROM nodes o
                                  WHERE o.id = s.node_id AND o.incarnation = s.owner AND node_is_up(o))
           END
    RETURNING s.id, 'claimed';
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT NULL::smallint, CASE WHEN EXISTS (SELECT 1 FROM nodes n
                                                  WHERE n.id = p_node AND n.incarnation = p_incarnation)
                                    THEN 'in_use' ELSE 'fenced' END;
    END IF;
END
$$;

-- Which replicas count: live, on a shard that serves reads, on a node heard of lately.
CREATE FUNCTION good_replicas(p_blob bigint)
RETURNS TABLE (shard_id smallint, generation uuid, zone text)
LANGUAGE sql STABLE AS $$
    SELECT r.shard_id, r.generation, n.zone
      FROM live_replicas(p_blob) r
      JOIN shards s ON s.id = r.shard_id AND s.state NOT IN ('offline', 'lost')
      JOIN nodes n ON n.id = s.node_id AND node_is_up(n)
$$;

-- Which replicas make up a blob's N: live, on a shard that stays. A node that is merely down keeps its copies, so
-- that its restart starts no repairs; up tells whether one can be read now. A draining shard is read, not counted.
CREATE FUNCTION homes(p_blob bigint)
RETURNS TABLE (shard_id smallint, generation uuid, zone text, up boolean)
LANGUAGE sql STABLE AS $$
    SELECT r.shard_id, r.generation, n.zone, s.state <> 'offline' AND node_is_up(n)
      FROM live_replicas(p_blob) r
      JOIN shards s ON s.id = r.shard_id AND s.state IN ('active', 'read_only', 'offline')
      JOIN nodes n ON n.id = s.node_id
$$;

-- Zones with a member of the ring.
CREATE FUNCTION ring_zones()
RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT count(DISTINCT n.zone) FROM shards s JOIN nodes n ON n.id = s.node_id
     WHERE s.state IN ('active', 'read_only', 'offline')
$$;

-- Whether a blob has the copies it should have, in the zones it should be in, readable or not.
CREATE FUNCTION is_whole(p_blob bigint, p_redundancy smallint, p_ring_zones bigint)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT count(DISTINCT h.shard_id) >= p_redundancy AND count(DISTINCT h.zone) >= least(p_redundancy, p_ring_zones)
      FROM homes(p_blob) h
$$;

CREATE FUNCTION repair_urgency(p_blob bigint)
RETURNS smallint LANGUAGE sql STABLE AS $$
    SELECT CASE count(DISTINCT g.shard_id) WHEN 0 THEN 99 ELSE count(DISTINCT g.shard_id) END::smallint
      FROM good_replicas(p_blob) g
$$;

CREATE FUNCTION enqueue_repair(p_blob bigint, p_reason text)
RETURNS void LANGUAGE sql AS $$
    -- The lock keeps gc from taking the blob away between this look and the foreign key's.
    INSERT INTO repair_queue AS q (blob_id, reason, urgency, size)
    SELECT b.id, p_reason, repair_urgency(b.id), b.size FROM blobs b WHERE b.id = p_blob FOR KEY SHARE
    ON CONFLICT (blob_id) DO UPDATE
       SET urgency = excluded.urgency, renewed_at = clock_timestamp(),
           due_at = CASE WHEN q.claim IS NULL THEN least(q.due_at, clock_timestamp()) ELSE q.due_at END
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

-- Nodes ask this in every statement that changes what clients see (HF006): one may not have heard of the switch yet.
-- Whoever works on the database by hand does not.
CREATE FUNCTION require_writable()
RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_reason text;
BEGIN
    SELECT s.value #>> '{}' INTO v_reason FROM settings s WHERE s.key = 'read_only_reason';
    IF v_reason <> '' THEN
        RAISE EXCEPTION 'The cluster is read-only: %.', v_reason USING ERRCODE = 'HF006';
    END IF;
END
$$;

-- Since when events are kept, at least: '-infinity' where they are for ever.
CREATE FUNCTION audit_horizon()
RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN d.days > 0 THEN clock_timestamp() - make_interval(secs => 86400 * d.days) ELSE '-infinity' END
      FROM (SELECT coalesce((SELECT (value #>> '{}')::double precision FROM settings WHERE key = 'audit_days'), 366)
           ) AS d (days)
$$;

-- Events are only added (HF011): whoever wrote one may take it back in the same transaction, and what is old enough goes.
CREATE FUNCTION keep_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.at < audit_horizon() THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'events stay as they are' USING ERRCODE = 'HF011';
END
$$;
CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
    FOR EACH ROW WHEN (OLD.xmin <> pg_current_xact_id()::xid AND OLD.* IS DISTINCT FROM NEW.*)
    EXECUTE FUNCTION keep_events();
CREATE TRIGGER events_are_not_deleted BEFORE DELETE ON events
    FOR EACH ROW WHEN (OLD.xmin <> pg_current_xact_id()::xid) EXECUTE FUNCTION keep_events();
CREATE TRIGGER events_are_not_truncated BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION keep_events();

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
CREATE FUNCTION place_hold(
    p_reason text, p_detail text, p_allowance bigint DEFAULT 0, p_principal text DEFAULT 'holdfast',
    p_request text DEFAULT '', p_address inet DEFAULT NULL
)
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
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ('hold', p_principal, p_request, p_address, jsonb_build_object('reason', p_reason, 'detail', p_detail));
    RETURN true;
END
$$;

-- List a file for removal and condemn its replica, whatever that was: live, suspect, or never committed.
-- The rule for reducers is the caller's: lock the blob, count anew, then call. Listed already: nothing changes.
CREATE FUNCTION remove_later(
    p_shard smallint, p_generation uuid, p_sha256 bytea, p_reason text, p_size bigint DEFAULT NULL,
    p_delay interval DEFAULT NULL
)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_epoch bigint := coalesce((SELECT l.epoch FROM lease l), 0);
BEGIN
    INSERT INTO replicas AS r (shard_id, generation, blob_id, state) VALUES (p_shard, p_generation, NULL, 'condemned')
    ON CONFLICT (shard_id, generation) DO UPDATE SET blob_id = NULL, state = 'condemned'
     WHERE r.state <> 'condemned';
    INSERT INTO removals (shard_id, generation, sha256, size, reason, not_before, epoch)
    VALUES (p_shard, p_generation, p_sha256,
            coalesce(p_size, (SELECT b.size FROM blobs b WHERE b.sha256 = p_sha256), 0), p_reason,
            clock_timestamp() + coalesce(p_delay, removal_delay()), v_epoch)
    ON CONFLICT (shard_id, generation) DO NOTHING;
    IF FOUND THEN
        INSERT INTO events (kind, sha256, principal, request_id, detail)
        VALUES ('replica_remove', p_sha256, 'holdfast', '', jsonb_build_object(
            'shard', p_shard, 'generation', p_generation, 'reason', p_reason, 'epoch', v_epoch));
    END IF;
END
$$;

-- The same for a file that may have been committed meanwhile, as after a write of unknown outcome: false,
-- and nothing happens, when it is a blob's replica. Otherwise it can never become one.
CREATE FUNCTION remove_unless_live(
    p_shard smallint, p_generation uuid, p_sha256 bytea, p_reason text, p_size bigint DEFAULT NULL,
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
CREATE FUNCTION deploy_known(
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
CREATE FUNCTION delete_step(
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

-- All at once, as releases before this one ask for it; returns how many rows went.
CREATE FUNCTION delete_item(
    p_repo integer, p_folder text, p_name text, p_principal text, p_request text, p_address inet DEFAULT NULL
)
RETURNS bigint LANGUAGE sql AS $$
    SELECT d.gone FROM delete_step(p_repo, p_folder, p_name, 1000000000, p_principal, p_request, p_address) d
$$;

-- Bring one thing back from the trash, to p_folder/p_name of p_repo. Outcomes: 'restored'; 'exists',
-- when an artifact is there and p_replace is false (with it, that one goes to the trash); 'gone', when
-- it is in the trash no more. SQLSTATE HF001, HF009, HF010 and HF012 as in commit_upload.
CREATE FUNCTION restore_trash(
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

-- Where to go on behind p_folder, in a walk through the tree of p_path, if nothing directly in it is wanted; null if
-- something may be. It lies too deep (p_levels; 1 is what lies directly in p_path), or beside the tree, or neither it nor
-- what is below it can match p_reach, as some folder around it may not.
CREATE FUNCTION walk_on(p_path text, p_folder text, p_levels integer, p_reach text)
RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_parts  text[] := string_to_array(p_folder, '/');
    v_around integer := coalesce(cardinality(string_to_array(p_path, '/')), 0);
    v_part   text;
BEGIN
    -- Between a folder and what lies deeper, paths that only begin alike are sorted ('a', 'a-b', 'a/b').
    IF p_path <> '' AND p_folder <> p_path AND NOT starts_with(p_folder, p_path || '/') THEN
        RETURN p_path || '/';
    END IF;
    IF cardinality(v_parts) >= v_around + p_levels THEN
        v_part := array_to_string(v_parts[:v_around + p_levels - 1], '/');
        RETURN CASE WHEN v_part = '' THEN repeat(chr(1114111), 100) ELSE v_part || '0' END;
    END IF;
    IF p_folder ~ p_reach THEN
        RETURN NULL;
    END IF;
    FOR i IN 1 .. cardinality(v_parts) LOOP
        v_part := array_to_string(v_parts[:i], '/');
        IF v_part !~ p_reach THEN
            -- No path has control characters.
            RETURN v_part || CASE WHEN v_part = p_folder THEN chr(1) ELSE '0' END;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Part of what lies in the tree of p_path (all of the repository: ''), in the order of its paths, behind
-- p_after_folder/p_after_name: down to p_levels (null: all), of artifacts those that match p_shown and that the
-- repository's patterns show, of folders, where p_folders says so, those in which something may match p_reach, of their
-- own folder's name. Whole subtrees that have nothing of it are passed over. At most p_max rows are looked at; where there
-- are more, the last row returned is no item, only where to go on (more).
CREATE FUNCTION tree_walk(
    p_repo integer, p_path text, p_after_folder text, p_after_name text, p_max bigint, p_levels integer, p_folders boolean,
    p_reach text, p_shown text, OUT item artifacts, OUT more boolean
)
RETURNS SETOF record LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_high   text := CASE WHEN p_path = '' THEN repeat(chr(1114111), 100) ELSE p_path || '0' END;
    v_folder text := greatest(p_after_folder, p_path COLLATE "C");
    v_name   text := CASE WHEN v_folder = p_after_folder THEN p_after_name ELSE '' END;
    v_seen   bigint := 0;
    v_in     text;
    v_on     text;
    v_regex  text;
BEGIN
    SELECT r.paths_regex INTO v_regex FROM repositories r WHERE r.id = p_repo;
    more := false;
    LOOP
        v_on := NULL;
        FOR item IN
            SELECT a.* FROM artifacts a
             WHERE a.repo_id = p_repo AND (a.folder, a.name) > (v_folder, v_name) AND a.folder < v_high
             ORDER BY a.folder, a.name LIMIT p_max - v_seen
        LOOP
            v_seen := v_seen + 1;
            IF v_in IS DISTINCT FROM item.folder THEN
                v_in := item.folder;
                v_on := walk_on(p_path, v_in, p_levels, p_reach);
                EXIT WHEN v_on IS NOT NULL;
            END IF;
            v_folder := item.folder;
            v_name := item.name;
            IF item.blob_id IS NULL THEN
                IF p_folders THEN
                    RETURN NEXT;
                END IF;
            ELSIF shows(v_regex, v_folder, v_name) AND shows(p_shown, v_folder, v_name) THEN
                RETURN NEXT;
            END IF;
        END LOOP;
        IF v_on IS NOT NULL THEN
            v_folder := v_on;
            v_name := '';
        END IF;
        EXIT WHEN v_on IS NULL OR v_seen >= p_max;
    END LOOP;
    IF v_seen >= p_max THEN
        item := NULL;
        item.folder := v_folder;
        item.name := v_name;
        more := true;
        RETURN NEXT;
    END IF;
END
$$;

-- Change the properties of an artifact or a folder or, with p_recursive, of all in its tree, a page at a time:
-- those named in p_drop go, those in p_set get new values. seen is less than p_max on the last page; the next one is
-- behind last_folder/last_name. HF007: an item would have more than p_bytes_max of properties; nothing was done.
CREATE FUNCTION change_properties(
    p_repo integer, p_folder text, p_name text, p_recursive boolean, p_after_folder text, p_after_name text,
    p_max bigint, p_set jsonb, p_drop text[], p_bytes_max integer, p_principal text, p_request text,
    p_address      inet DEFAULT NULL,
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
        INSERT INTO events (kind, repository, path, principal, request_id, address, detail)
        SELECT 'properties', r.key, concat_ws('/', nullif(p_folder, ''), p_name), p_principal, p_request, p_address,
               jsonb_build_object('items', v_changed, 'set', p_set, 'dropped', to_jsonb(p_drop))
          FROM repositories r WHERE r.id = p_repo;
    END IF;
END
$$;

-- Copy or move one artifact or folder to p_to_folder/p_to_name of p_to, as it is, with its properties. Of a folder only
-- the folder. Outcomes: 'done'; 'same', when it is there already; 'gone', when there is nothing to be copied; 'conflict',
-- when a folder is where an artifact should be, or the other way round; 'forbidden', when another artifact is there and
-- may not be overwritten by whoever asks; 'overwrite', 'pattern' and 'quota', when the target's repository refuses it,
-- 'delete', when the source's does. What was in the place goes to the trash. The caller shares the locks of both
-- repositories.
CREATE FUNCTION transfer_item(
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

-- Let go of those among the oldest p_max events that audit_days keeps no longer, and note that; returns how many went.
CREATE FUNCTION forget_events(p_epoch bigint, p_token uuid, p_max integer)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_gone bigint;
    v_last timestamptz;
BEGIN
    PERFORM require_lease(p_epoch, p_token);
    IF deletions_held() THEN
        RETURN 0;
    END IF;
    WITH gone AS (
        DELETE FROM events e WHERE e.id = ANY (ARRAY(
            SELECT o.id FROM (SELECT f.id, f.at FROM events f ORDER BY f.id LIMIT p_max) AS o WHERE o.at < audit_horizon()))
        RETURNING e.at
    )
    SELECT count(*), max(g.at) INTO v_gone, v_last FROM gone g;
    IF v_gone > 0 THEN
        INSERT INTO events (kind, principal, request_id, detail)
        VALUES ('audit_forget', 'holdfast', '',
                jsonb_build_object('events', v_gone, 'until', v_last, 'epoch', p_epoch));
    END IF;
    RETURN v_gone;
END
$$;

-- ---------------------------------------------------------------- tokens

-- End tokens and whatever was made by them, at most p_max by one call; returns which have ended by it: while there are
-- any, call it again. Whoever makes one holds the row of its parent, so that each level is looked for when the one above
-- it makes none any more. What a token that has ended made has ended too, but for an API key that replaced it.
CREATE FUNCTION revoke_tokens(p_tokens bigint[], p_max integer DEFAULT 5000)
RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    -- One that was about to end may be refreshed at this moment.
    v_before timestamptz := clock_timestamp() - interval '1 minute';
    v_level bigint[] := p_tokens;
    v_living bigint[];
    v_all bigint[] := '{}';
BEGIN
    WHILE cardinality(v_level) > 0 AND cardinality(v_all) < p_max LOOP
        v_living := ARRAY(SELECT l.id FROM tokens l WHERE l.id = ANY (v_level) AND l.revoked_at IS NULL
                           ORDER BY l.id LIMIT p_max - cardinality(v_all) FOR NO KEY UPDATE);
        -- Each UPDATE is announced to all nodes, one of nothing too.
        IF cardinality(v_living) > 0 THEN
            WITH ended AS (
                UPDATE tokens t SET revoked_at = clock_timestamp()
                 WHERE t.id = ANY (v_living) AND t.revoked_at IS NULL
                RETURNING t.id
            )
            SELECT v_all || coalesce(array_agg(e.id ORDER BY e.id), '{}') INTO v_all FROM ended e;
        END IF;
        v_level := ARRAY(SELECT c.id FROM tokens c
                          WHERE c.parent_id = ANY (v_level)
                            AND (c.expires_at IS NULL OR greatest(c.expires_at, c.refreshable_until) > v_before));
    END LOOP;
    RETURN v_all;
END
$$;

-- Let go of tokens that ended longer than p_kept ago, of refresh tokens used before that, and of wrong logins older than
-- p_lock: at most p_max of each. A token goes after those it made. Returns how many rows went.
CREATE FUNCTION forget_credentials(p_epoch bigint, p_token uuid, p_kept interval, p_lock interval, p_max integer)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_before timestamptz := clock_timestamp() - p_kept;
    v_ended bigint[];
    v_tokens bigint;
    v_used bigint;
    v_logins bigint;
BEGIN
    PERFORM require_lease(p_epoch, p_token);
    v_ended := ARRAY(
        SELECT t.id FROM tokens t
         WHERE least(t.revoked_at, greatest(t.expires_at, t.refreshable_until)) < v_before
           AND NOT EXISTS (SELECT 1 FROM tokens c WHERE c.parent_id = t.id)
         ORDER BY least(t.revoked_at, greatest(t.expires_at, t.refreshable_until)) LIMIT p_max
           FOR UPDATE SKIP LOCKED);
    -- None, and the nodes are told of nothing.
    IF cardinality(v_ended) > 0 THEN
        DELETE FROM tokens t WHERE t.id = ANY (v_ended);
        GET DIAGNOSTICS v_tokens = ROW_COUNT;
        INSERT INTO events (kind, principal, request_id, detail)
        VALUES ('token_forget', 'holdfast', '', jsonb_build_object('tokens', v_tokens, 'epoch', p_epoch));
    END IF;
    DELETE FROM used_refresh_tokens u
     WHERE u.sha256 = ANY (ARRAY(SELECT o.sha256 FROM used_refresh_tokens o WHERE o.used_at < v_before
                                  ORDER BY o.used_at LIMIT p_max FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_used = ROW_COUNT;
    DELETE FROM login_failures f USING (
        SELECT o.kind, o.name FROM login_failures o WHERE o.last_at < clock_timestamp() - p_lock
         ORDER BY o.last_at LIMIT p_max FOR UPDATE SKIP LOCKED
    ) AS old
     WHERE f.kind = old.kind AND f.name = old.name;
    GET DIAGNOSTICS v_logins = ROW_COUNT;
    RETURN coalesce(v_tokens, 0) + v_used + v_logins;
END
$$;

-- ---------------------------------------------------------------- garbage collection

-- Remove those of p_blobs, candidates since p_since, to which nothing refers: rows at once, files by
-- way of the removal list. The foreign keys have the last word: a reference this function does not know
-- of ends it with an error. SQLSTATE HF003: not the primary; HF005: deletions are held. Rows are found one
-- by one: no estimate may turn a page into a look at the whole of a table.
CREATE FUNCTION gc_collect(
    p_epoch bigint, p_token uuid, p_blobs bigint[], p_since timestamptz[], p_grace interval,
    OUT removed_blobs bigint, OUT removed_bytes bigint, OUT removed_files bigint, OUT referenced bigint
)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
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
         WHERE (SELECT 1 FROM artifacts a WHERE a.blob_id = l.id LIMIT 1) IS NULL
           AND (SELECT 1 FROM trash t WHERE t.blob_id = l.id LIMIT 1) IS NULL
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
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    v_page bigint[];
BEGIN
    PERFORM require_lease(p_epoch, p_token);
    v_page := ARRAY(SELECT b.id FROM blobs b WHERE b.id > p_after ORDER BY b.id LIMIT p_max);
    INSERT INTO gc_candidates (blob_id, reason)
    SELECT p.id, 'missed' FROM unnest(v_page) AS p (id)
     WHERE (SELECT 1 FROM artifacts a WHERE a.blob_id = p.id LIMIT 1) IS NULL
       AND (SELECT 1 FROM trash t WHERE t.blob_id = p.id LIMIT 1) IS NULL
       AND (SELECT 1 FROM gc_candidates c WHERE c.blob_id = p.id) IS NULL
     ORDER BY p.id
    ON CONFLICT (blob_id) DO NOTHING;
    GET DIAGNOSTICS missed = ROW_COUNT;
    last := v_page[cardinality(v_page)];
END
$$;

-- Claim up to p_count blobs, or p_bytes of them but always one, for p_seconds: fewest good copies first, those
-- without any last. A claim is committed at once; who does not come back in time loses it to the next.
CREATE FUNCTION claim_repairs(p_claim uuid, p_seconds double precision, p_count integer, p_bytes bigint)
RETURNS TABLE (blob_id bigint, uid uuid, sha256 bytea, size bigint, redundancy smallint, first_digests bytea,
               urgency smallint, attempts integer, renewed_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_urgency smallint;
    v_row     record;
    v_count   integer := 0;
    v_bytes   bigint := 0;
BEGIN
    FOREACH v_urgency IN ARRAY ARRAY[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 99] LOOP
        FOR v_row IN
            SELECT q.blob_id, b.uid, b.sha256, b.size, b.redundancy,
                   substring(b.block_digests FROM 1 FOR 512) AS first_digests, q.attempts, q.renewed_at
              FROM repair_queue q JOIN blobs b ON b.id = q.blob_id
             WHERE q.urgency = v_urgency AND q.due_at <= clock_timestamp()
             ORDER BY q.due_at LIMIT p_count - v_count FOR NO KEY UPDATE OF q SKIP LOCKED
        LOOP
            EXIT WHEN v_count > 0 AND v_bytes + v_row.size > p_bytes;
            v_count := v_count + 1;
            v_bytes := v_bytes + v_row.size;
            UPDATE repair_queue q
               SET claim = p_claim, due_at = clock_timestamp() + make_interval(secs => p_seconds)
             WHERE q.blob_id = v_row.blob_id;
            blob_id := v_row.blob_id;
            uid := v_row.uid;
            sha256 := v_row.sha256;
            size := v_row.size;
            redundancy := v_row.redundancy;
            first_digests := v_row.first_digests;
            urgency := v_urgency;
            attempts := v_row.attempts;
            renewed_at := v_row.renewed_at;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN v_count >= p_count OR v_bytes >= p_bytes;
    END LOOP;
END
$$;

-- End the repairs of a batch: give each blob those of the new copies (p_of, p_shards, p_generations) it still lacks,
-- and take it off the queue when it is whole. Lock, count anew in the next statement, act; blobs are taken together,
-- their copies one round after the other, so that each sees those before it. adopted are the copies that are the
-- blob's now (also those of an earlier call whose answer was lost); the others were not needed and their writer
-- removes them.
--
-- Outcomes: 'gone' (no such blob), 'whole', 'waiting' (all copies are there, but some cannot be read now: only time
-- or a verdict helps), 'short' (copies are missing). A row that is not removed is due again after its
-- p_retry_seconds, or now where somebody asked anew since the claim.
CREATE FUNCTION settle_repairs(
    p_claim uuid, p_blobs bigint[], p_renewed timestamptz[], p_retry_seconds double precision[], p_notes text[],
    p_of bigint[], p_shards smallint[], p_generations uuid[]
)
RETURNS TABLE (blob_id bigint, adopted uuid[], outcome text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_zones    bigint;
    v_outcomes text[];
    v_round    integer := 0;
    v_more     boolean;
BEGIN
    PERFORM 1 FROM blobs b WHERE b.id = ANY (p_blobs) ORDER BY b.sha256 FOR NO KEY UPDATE;
    v_zones := ring_zones();
    LOOP
        v_round := v_round + 1;
        SELECT count(*) >= v_round INTO v_more
          FROM unnest(p_of) AS c (blob) GROUP BY c.blob ORDER BY 1 DESC LIMIT 1;
        EXIT WHEN v_more IS NOT TRUE;
        PERFORM adopt_replicas(v_round, v_zones, p_of, p_shards, p_generations);
    END LOOP;

    SELECT array_agg(CASE
               WHEN b.id IS NULL THEN 'gone'
               WHEN b.size = 0 OR (h.good >= b.redundancy AND h.good_zones >= least(b.redundancy, v_zones)) THEN 'whole'
               WHEN h.copies >= b.redundancy AND h.zones >= least(b.redundancy, v_zones) THEN 'waiting'
               ELSE 'short'
           END ORDER BY u.n)
      INTO v_outcomes
      FROM unnest(p_blobs) WITH ORDINALITY AS u (blob, n)
      LEFT JOIN blobs b ON b.id = u.blob
     CROSS JOIN LATERAL (
           SELECT count(DISTINCT h.shard_id) AS copies, count(DISTINCT h.zone) AS zones,
                  count(DISTINCT h.shard_id) FILTER (WHERE h.up) AS good,
                  count(DISTINCT h.zone) FILTER (WHERE h.up) AS good_zones
             FROM homes(u.blob) h) AS h;
    PERFORM remove_later(r.shard_id, r.generation, b.sha256, 'rebalance')
       FROM unnest(p_blobs, v_outcomes) AS u (blob, outcome)
       JOIN blobs b ON b.id = u.blob
       JOIN replicas r ON r.blob_id = u.blob AND r.state = 'live'
       JOIN shards s ON s.id = r.shard_id AND s.state = 'draining'
      WHERE u.outcome = 'whole' AND NOT deletions_held();
    DELETE FROM repair_queue q
     USING unnest(p_blobs, p_renewed, v_outcomes) AS u (blob, renewed, outcome)
     WHERE q.blob_id = ANY (p_blobs) AND q.blob_id = u.blob AND q.renewed_at = u.renewed AND u.outcome = 'whole';
    UPDATE repair_queue q
       SET claim = NULL, urgency = repair_urgency(q.blob_id), outcome = concat_ws(': ', u.outcome, u.note),
           attempts = CASE WHEN EXISTS (
                               SELECT 1 FROM unnest(p_of, p_shards, p_generations) AS c (blob, shard_id, generation)
                                 JOIN replicas r ON r.shard_id = c.shard_id AND r.generation = c.generation
                                WHERE c.blob = q.blob_id AND r.blob_id = c.blob)
                           THEN 0 ELSE q.attempts + 1 END,
           due_at = CASE WHEN q.renewed_at = u.renewed THEN clock_timestamp() + make_interval(secs => u.retry)
                         ELSE clock_timestamp() END
      FROM unnest(p_blobs, p_renewed, p_retry_seconds, p_notes, v_outcomes) AS u (blob, renewed, retry, note, outcome)
     WHERE q.blob_id = ANY (p_blobs) AND q.blob_id = u.blob AND q.claim = p_claim;
    RETURN QUERY
        SELECT u.blob, coalesce(a.generations, '{}'), u.outcome
          FROM unnest(p_blobs, v_outcomes) AS u (blob, outcome)
          LEFT JOIN (
               SELECT c.blob, array_agg(c.generation) AS generations
                 FROM unnest(p_of, p_shards, p_generations) AS c (blob, shard_id, generation)
                 JOIN replicas r ON r.shard_id = c.shard_id AND r.generation = c.generation AND r.blob_id = c.blob
                GROUP BY c.blob) AS a ON a.blob = u.blob;
END
$$;

-- Insert of each blob its new copy number p_round, if the blob still lacks it: on a shard of its own that takes
-- writes, and either a copy too few or a zone too few. The caller has locked the blobs' rows.
CREATE FUNCTION adopt_replicas(
    p_round integer, p_zones bigint, p_of bigint[], p_shards smallint[], p_generations uuid[]
)
RETURNS void LANGUAGE sql AS $$
    -- A condemned generation is there already: reconcile took the file while we were slow.
    INSERT INTO replicas (shard_id, generation, blob_id)
    SELECT c.shard_id, c.generation, c.blob
      FROM (SELECT u.blob, u.shard_id, u.generation, row_number() OVER (PARTITION BY u.blob ORDER BY u.n) AS round
              FROM unnest(p_of, p_shards, p_generations) WITH ORDINALITY AS u (blob, shard_id, generation, n)) AS c
      JOIN blobs b ON b.id = c.blob
      JOIN shards s ON s.id = c.shard_id AND s.state = 'active'
      JOIN nodes n ON n.id = s.node_id
     CROSS JOIN LATERAL (
           SELECT count(DISTINCT h.shard_id) AS copies, count(DISTINCT h.zone) AS zones,
                  coalesce(bool_or(h.shard_id = c.shard_id), false) AS is_here,
                  coalesce(bool_or(h.zone = n.zone), false) AS knows_zone
             FROM homes(c.blob) h) AS h
     WHERE c.round = p_round AND NOT h.is_here
       AND (h.copies < b.redundancy OR (NOT h.knows_zone AND h.zones < least(b.redundancy, p_zones)))
    ON CONFLICT (shard_id, generation) DO NOTHING
$$;

-- Drop one live replica that the blob can do without: by the copies that can be read now, N in their zones must be
-- left. False, and nothing is done, otherwise.
CREATE FUNCTION trim_replica(p_blob bigint, p_shard smallint, p_generation uuid, p_reason text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_wanted smallint;
    v_sha256 bytea;
    v_good   bigint;
    v_spread bigint;
BEGIN
    SELECT b.redundancy, b.sha256 INTO v_wanted, v_sha256 FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM replicas r
      WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = p_blob AND r.state = 'live';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT count(DISTINCT h.shard_id), count(DISTINCT h.zone) INTO v_good, v_spread
      FROM homes(p_blob) h WHERE h.up AND (h.shard_id, h.generation) <> (p_shard, p_generation);
    IF v_good < v_wanted OR v_spread < least(v_wanted, ring_zones()) OR deletions_held() THEN
        RETURN false;
    END IF;
    PERFORM remove_later(p_shard, p_generation, v_sha256, p_reason);
    RETURN true;
END
$$;

-- Flip a misplaced replica to its copy on the shard the ring wants. Outcomes: 'moved'; 'copied' (the copy is the
-- blob's now, but the old one is still needed); 'surplus' (the copy is not needed: its writer removes it).
CREATE FUNCTION move_replica(
    p_blob bigint, p_from smallint, p_old uuid, p_to smallint, p_new uuid
)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'surplus';
    END IF;
    PERFORM 1 FROM replicas r WHERE r.shard_id = p_to AND r.generation = p_new AND r.blob_id = p_blob;
    IF NOT FOUND THEN
        PERFORM 1 FROM replicas r
          WHERE r.shard_id = p_from AND r.generation = p_old AND r.blob_id = p_blob AND r.state = 'live';
        IF NOT FOUND
           OR EXISTS (SELECT 1 FROM homes(p_blob) h WHERE h.shard_id = p_to)
           OR NOT EXISTS (SELECT 1 FROM shards s WHERE s.id = p_to AND s.state = 'active') THEN
            RETURN 'surplus';
        END IF;
        INSERT INTO replicas (shard_id, generation, blob_id) VALUES (p_to, p_new, p_blob)
        ON CONFLICT (shard_id, generation) DO NOTHING;
        IF NOT FOUND THEN
            RETURN 'surplus';
        END IF;
    END IF;
    RETURN CASE WHEN trim_replica(p_blob, p_from, p_old, 'rebalance') THEN 'moved' ELSE 'copied' END;
END
$$;

-- Set a shard's state, start the walk it calls for, and note who did it and why. False where it is so already.
CREATE FUNCTION set_shard_state(
    p_shard smallint, p_state text, p_reason text, p_principal text, p_request text,
    p_address inet DEFAULT NULL
)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_before text;
BEGIN
    SELECT s.state INTO v_before FROM shards s WHERE s.id = p_shard FOR NO KEY UPDATE;
    IF NOT FOUND OR v_before = p_state THEN
        RETURN false;
    END IF;
    UPDATE shards SET state = p_state, state_since = clock_timestamp(), state_reason = p_reason WHERE id = p_shard;
    DELETE FROM shard_walks w WHERE w.shard_id = p_shard;
    IF p_state IN ('lost', 'draining') THEN
        INSERT INTO shard_walks (shard_id, kind)
        VALUES (p_shard, CASE p_state WHEN 'lost' THEN 'lost' ELSE 'drain' END);
    END IF;
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ('shard_state', p_principal, p_request, p_address, jsonb_build_object(
        'shard', p_shard, 'before', v_before, 'state', p_state, 'reason', p_reason));
    RETURN true;
END
$$;

-- What an administrator asks of a shard: 'drain', 'readonly', 'activate', 'replace'. Outcomes: 'done'; 'unchanged';
-- 'absent'; 'lost' (a lost shard can only come back, be replaced or be removed); 'replaced' (another disk has its
-- place); 'returning' (a walk doubts its copies, then it is active).
CREATE FUNCTION change_shard(
    p_shard smallint, p_action text, p_principal text, p_request text,
    p_address inet DEFAULT NULL
)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_state    text;
    v_replaced boolean;
BEGIN
    SELECT s.state, s.replaced INTO v_state, v_replaced FROM shards s WHERE s.id = p_shard FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'absent';
    ELSIF p_action = 'replace' THEN
        UPDATE shards s SET replaced = true WHERE s.id = p_shard;
        PERFORM set_shard_state(p_shard, 'lost', 'replaced by another disk', p_principal, p_request, p_address);
        RETURN CASE WHEN v_replaced THEN 'unchanged' ELSE 'done' END;
    ELSIF v_state <> 'lost' THEN
        RETURN CASE WHEN set_shard_state(p_shard, CASE p_action WHEN 'drain' THEN 'draining'
                                                                WHEN 'readonly' THEN 'read_only' ELSE 'active' END,
                                         'by an administrator', p_principal, p_request, p_address)
               THEN 'done' ELSE 'unchanged' END;
    ELSIF p_action <> 'activate' THEN
        RETURN 'lost';
    ELSIF v_replaced THEN
        RETURN 'replaced';
    END IF;
    INSERT INTO shard_walks AS w (shard_id, kind) VALUES (p_shard, 'return')
    ON CONFLICT (shard_id) DO UPDATE
       SET kind = 'return', cursor = NULL, walked = 0, kept_back = 0, passes = 0, due_at = now(), started_at = now()
     WHERE w.kind <> 'return';
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ('shard_return', p_principal, p_request, p_address, jsonb_build_object('shard', p_shard));
    RETURN 'returning';
END
$$;

-- Remove a node that is down and has no shard left. Outcomes: 'absent', 'up', 'has_shards', 'removed'.
CREATE FUNCTION remove_node(p_node text, p_principal text, p_request text, p_address inet DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_up boolean;
BEGIN
    SELECT node_is_up(n) INTO v_up FROM nodes n WHERE n.id = p_node FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'absent';
    ELSIF v_up THEN
        RETURN 'up';
    ELSIF EXISTS (SELECT 1 FROM shards s WHERE s.node_id = p_node) THEN
        RETURN 'has_shards';
    END IF;
    DELETE FROM jobs j WHERE j.node_id = p_node;
    DELETE FROM nodes n WHERE n.id = p_node;
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ('node_remove', p_principal, p_request, p_address, jsonb_build_object('node', p_node));
    RETURN 'removed';
END
$$;

-- Remove a shard for good. Outcomes: 'absent'; 'in_use' (a living node has it open); 'not_drained' (neither draining
-- nor lost); 'holds' (copies are still on it); 'forgetting' (it is lost: a walk drops the copies that have been made
-- good elsewhere, and then the shard); 'removed'.
CREATE FUNCTION remove_shard(p_shard smallint, p_principal text, p_request text, p_address inet DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_state text;
    v_used  boolean;
BEGIN
    SELECT s.state, EXISTS (SELECT 1 FROM nodes n
                             WHERE n.id = s.node_id AND n.incarnation = s.owner AND node_is_up(n))
      INTO v_state, v_used FROM shards s WHERE s.id = p_shard FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'absent';
    ELSIF v_state NOT IN ('draining', 'lost') THEN
        RETURN 'not_drained';
    ELSIF v_used THEN
        RETURN 'in_use';
    END IF;
    PERFORM 1 FROM replicas r WHERE r.shard_id = p_shard AND r.blob_id IS NOT NULL LIMIT 1;
    IF FOUND AND v_state = 'draining' THEN
        RETURN 'holds';
    ELSIF FOUND THEN
        INSERT INTO shard_walks AS w (shard_id, kind) VALUES (p_shard, 'forget')
        ON CONFLICT (shard_id) DO UPDATE
           SET kind = 'forget', cursor = NULL, walked = 0, kept_back = 0, passes = 0, due_at = now(), started_at = now()
         WHERE w.kind <> 'forget';
        RETURN 'forgetting';
    END IF;
    DELETE FROM removals r WHERE r.shard_id = p_shard;
    DELETE FROM replicas r WHERE r.shard_id = p_shard;
    DELETE FROM shard_walks w WHERE w.shard_id = p_shard;
    DELETE FROM shard_cursors c WHERE c.shard_id = p_shard;
    DELETE FROM scrubs p WHERE p.shard_id = p_shard;
    DELETE FROM backups b WHERE b.shard_id = p_shard;
    DELETE FROM sightings s WHERE s.shard_id = p_shard;
    DELETE FROM checks c WHERE c.shard_id = p_shard;
    DELETE FROM quarantine q WHERE q.shard_id = p_shard;
    DELETE FROM shard_space f WHERE f.shard_id = p_shard;
    DELETE FROM shards s WHERE s.id = p_shard;
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ('shard_remove', p_principal, p_request, p_address, jsonb_build_object('shard', p_shard));
    RETURN 'removed';
END
$$;

-- Let the walk that forgets a lost shard drop the p_copies last copies that it counted there. Outcomes: 'absent';
-- 'not_lost'; 'not_counted' (no whole walk is over); 'counted_otherwise'; 'forgetting'.
CREATE FUNCTION give_up_last_copies(
    p_shard smallint, p_copies bigint, p_principal text, p_request text,
    p_address inet DEFAULT NULL
)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_state text;
    v_walk  shard_walks;
BEGIN
    SELECT s.state INTO v_state FROM shards s WHERE s.id = p_shard FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'absent';
    ELSIF v_state <> 'lost' THEN
        RETURN 'not_lost';
    END IF;
    SELECT w.* INTO v_walk FROM shard_walks w WHERE w.shard_id = p_shard FOR NO KEY UPDATE;
    IF NOT FOUND OR v_walk.kind <> 'forget' OR v_walk.passes = 0 OR v_walk.cursor IS NOT NULL THEN
        RETURN 'not_counted';
    ELSIF v_walk.last_copies <> p_copies OR p_copies = 0 THEN
        RETURN 'counted_otherwise';
    END IF;
    UPDATE shard_walks w SET give_up = p_copies, passes = 0, due_at = clock_timestamp() WHERE w.shard_id = p_shard;
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ('shard_give_up', p_principal, p_request, p_address, jsonb_build_object('shard', p_shard, 'copies', p_copies));
    RETURN 'forgetting';
END
$$;

-- Take one step of the walk that is due: at most p_count replicas. Nothing is returned when none is due.
CREATE FUNCTION walk_shard(p_count integer, p_again_seconds double precision, p_lost_again_seconds double precision)
RETURNS TABLE (at_shard smallint, at_kind text, stepped bigint, acted bigint, ended boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_walk  shard_walks;
    v_zones bigint := ring_zones();
    v_row   record;
    v_back  bigint := 0;
    v_last  bigint := 0;
BEGIN
    SELECT w.* INTO v_walk FROM shard_walks w WHERE w.due_at <= clock_timestamp()
     ORDER BY w.due_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    at_shard := v_walk.shard_id;
    at_kind := v_walk.kind;
    stepped := 0;
    acted := 0;
    FOR v_row IN
        SELECT s.generation, s.blob_id FROM (
            SELECT r.generation, r.blob_id FROM replicas r
             WHERE r.shard_id = v_walk.shard_id
               AND r.generation > coalesce(v_walk.cursor, '00000000-0000-0000-0000-000000000000')
             ORDER BY r.generation LIMIT p_count
        ) AS s LEFT JOIN blobs b ON b.id = s.blob_id ORDER BY b.sha256
    LOOP
        stepped := stepped + 1;
        v_walk.cursor := greatest(v_walk.cursor, v_row.generation);
        IF v_row.blob_id IS NOT NULL THEN
            CASE walk_replica(v_walk.kind, v_walk.shard_id, v_row.generation, v_row.blob_id, v_zones)
                WHEN 'acted' THEN acted := acted + 1;
                WHEN 'kept' THEN v_back := v_back + 1;
                WHEN 'last' THEN
                    IF v_walk.give_up > 0 THEN
                        DELETE FROM replicas r WHERE r.shard_id = v_walk.shard_id AND r.generation = v_row.generation;
                        v_walk.give_up := v_walk.give_up - 1;
                        acted := acted + 1;
                    ELSE
                        v_back := v_back + 1;
                        v_last := v_last + 1;
                    END IF;
                ELSE NULL;
            END CASE;
        END IF;
    END LOOP;
    ended := stepped < p_count;
    UPDATE shard_walks w
       SET cursor = CASE WHEN ended THEN NULL ELSE v_walk.cursor END,
           walked = CASE WHEN w.cursor IS NULL THEN stepped ELSE w.walked + stepped END,
           kept_back = CASE WHEN w.cursor IS NULL THEN v_back ELSE w.kept_back + v_back END,
           last_copies = CASE WHEN w.cursor IS NULL THEN v_last ELSE w.last_copies + v_last END,
           give_up = CASE WHEN ended THEN 0 ELSE v_walk.give_up END,
           passes = w.passes + ended::integer,
           due_at = CASE WHEN ended THEN clock_timestamp() + make_interval(secs =>
                        CASE w.kind WHEN 'lost' THEN p_lost_again_seconds ELSE p_again_seconds END)
                    ELSE w.due_at END
     WHERE w.shard_id = v_walk.shard_id
    RETURNING w.kept_back INTO v_back;
    IF ended AND at_kind = 'return' THEN
        PERFORM set_shard_state(at_shard, 'active', 'back; its copies count once they are read again', 'holdfast', '');
    ELSIF ended AND at_kind = 'forget' AND v_back = 0 THEN
        PERFORM remove_shard(at_shard, 'holdfast', '');
    END IF;
    RETURN NEXT;
END
$$;

-- What a walk does with one replica: 'acted', 'kept' (it is still needed), 'last' (and nobody knows of another), or
-- 'passed'.
CREATE FUNCTION walk_replica(p_kind text, p_shard smallint, p_generation uuid, p_blob bigint, p_zones bigint)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_wanted smallint;
BEGIN
    CASE p_kind
        WHEN 'drain' THEN
            PERFORM 1 FROM repair_queue q WHERE q.blob_id = p_blob;
            IF FOUND THEN
                RETURN 'passed';
            END IF;
            PERFORM enqueue_repair(p_blob, 'drain');
            RETURN 'acted';
        WHEN 'lost' THEN
            SELECT b.redundancy INTO v_wanted FROM blobs b WHERE b.id = p_blob;
            IF is_whole(p_blob, v_wanted, p_zones) THEN
                RETURN 'passed';
            END IF;
            PERFORM enqueue_repair(p_blob, 'lost');
            RETURN 'acted';
        WHEN 'return' THEN
            PERFORM 1 FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
            UPDATE replicas r SET state = 'suspect'
              WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.state = 'live';
            RETURN CASE WHEN FOUND THEN 'acted' ELSE 'passed' END;
        ELSE
            SELECT b.redundancy INTO v_wanted FROM blobs b WHERE b.id = p_blob FOR NO KEY UPDATE;
            IF NOT FOUND OR NOT is_whole(p_blob, v_wanted, p_zones) THEN
                PERFORM 1 FROM replicas r JOIN shards s ON s.id = r.shard_id AND s.state <> 'lost'
                  WHERE r.blob_id = p_blob AND r.state = 'live';
                RETURN CASE WHEN FOUND THEN 'kept' ELSE 'last' END;
            END IF;
            DELETE FROM replicas r
              WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = p_blob;
            RETURN 'acted';
    END CASE;
END
$$;

CREATE FUNCTION ask_census() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE census SET asked = asked + 1, due_at = least(due_at, clock_timestamp());
    RETURN NULL;
END
$$;
CREATE TRIGGER settings_counted AFTER INSERT OR UPDATE ON settings
    FOR EACH ROW WHEN (NEW.key = 'redundancy') EXECUTE FUNCTION ask_census();
CREATE TRIGGER repositories_counted AFTER UPDATE OF redundancy ON repositories
    FOR EACH ROW WHEN (OLD.redundancy IS DISTINCT FROM NEW.redundancy) EXECUTE FUNCTION ask_census();
-- A further zone asks for copies in it; one less, for fewer zones.
CREATE TRIGGER shards_counted AFTER INSERT OR DELETE OR UPDATE OF state ON shards
    FOR EACH ROW EXECUTE FUNCTION ask_census();

-- Take one step of the census: at most p_count blobs. N of a blob is the largest among the repositories that refer
-- to it and the cluster's; what no repository refers to keeps its own, in the trash too. Nothing is returned when no pass
-- is due.
CREATE FUNCTION take_census(p_count integer, p_redundancy smallint, p_period_seconds double precision)
RETURNS TABLE (counted bigint, queued bigint, at_blob bigint, last_blob bigint, ended boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_census  census;
    v_ids     bigint[];
    v_changed bigint[];
    v_short   bigint;
    v_zones   bigint := ring_zones();
BEGIN
    SELECT c.* INTO v_census FROM census c
     WHERE c.due_at <= clock_timestamp() FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_census.cursor = 0 THEN
        v_census.serving := v_census.asked;
    END IF;
    SELECT array_agg(s.id) INTO v_ids FROM (
        SELECT b.id FROM blobs b WHERE b.id > v_census.cursor AND b.size > 0 ORDER BY b.id LIMIT p_count
    ) AS s;
    counted := coalesce(cardinality(v_ids), 0);

    SELECT array_agg(b.id ORDER BY b.sha256) INTO v_changed FROM blobs b
      WHERE b.id = ANY (v_ids) AND b.redundancy <> wanted_redundancy(b.id, b.redundancy, p_redundancy);
    IF v_changed IS NOT NULL THEN
        -- Lock in digest order; what each should have is worked out after that, in a statement of its own.
        PERFORM 1 FROM blobs b WHERE b.id = ANY (v_changed) ORDER BY b.sha256 FOR NO KEY UPDATE;
        UPDATE blobs b SET redundancy = wanted_redundancy(b.id, b.redundancy, p_redundancy)
          WHERE b.id = ANY (v_changed);
    END IF;
    queued := 0;
    FOR v_short IN
        SELECT b.id FROM blobs b
         WHERE b.id = ANY (v_ids) AND NOT is_whole(b.id, b.redundancy, v_zones) ORDER BY b.sha256
    LOOP
        PERFORM 1 FROM artifacts a WHERE a.blob_id = v_short LIMIT 1;
        IF NOT FOUND THEN
            -- What can be restored keeps its copies.
            PERFORM 1 FROM trash t WHERE t.blob_id = v_short LIMIT 1;
        END IF;
        CONTINUE WHEN NOT FOUND;
        PERFORM enqueue_repair(v_short, CASE WHEN v_short = ANY (v_changed) THEN 'redundancy' ELSE 'census' END);
        queued := queued + 1;
    END LOOP;

    ended := counted < p_count;
    at_blob := v_ids[cardinality(v_ids)];
    UPDATE census c
       SET cursor = CASE WHEN ended THEN 0 ELSE at_blob END, serving = v_census.serving,
           repeated = CASE WHEN ended THEN v_census.serving ELSE c.repeated END,
           due_at = CASE WHEN NOT ended OR c.asked <> v_census.serving THEN c.due_at
                         WHEN c.repeated < v_census.serving THEN clock_timestamp() + interval '20 seconds'
                         ELSE clock_timestamp() + make_interval(secs => p_period_seconds) END;
    SELECT coalesce(max(b.id), 0) INTO last_blob FROM blobs b;
    RETURN NEXT;
END
$$;

CREATE FUNCTION wanted_redundancy(p_blob bigint, p_now smallint, p_cluster smallint)
RETURNS smallint LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN count(*) = 0 THEN p_now ELSE greatest(p_cluster, max(r.redundancy)) END
      FROM (SELECT DISTINCT a.repo_id FROM artifacts a WHERE a.blob_id = p_blob) AS used
      JOIN repositories r ON r.id = used.repo_id
$$;

-- Declare lost the shards that have been silent for p_seconds: not reported by any node, or as a disk without an
-- answer. The
-- caller is the primary node and has been it without a gap for as long. All or nothing: not when more than one zone
-- is silent or not yet made good again, not for half the shards or more.
CREATE FUNCTION declare_lost(p_seconds double precision, p_principal text, OUT declared smallint[], OUT refused text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_silent smallint[];
    v_zones  text[];
    v_gone   bigint;
    v_all    bigint;
BEGIN
    declared := '{}';
    -- One verdict at a time: two at once would each see the other's zone as whole.
    PERFORM pg_advisory_xact_lock(3, 0);
    SELECT array_agg(s.id ORDER BY s.id) INTO v_silent FROM shards s
      LEFT JOIN shard_space f ON f.shard_id = s.id
     WHERE s.state IN ('active', 'read_only', 'draining')
       AND least(coalesce(f.reported_at, s.created_at), f.silent_since)
           < clock_timestamp() - make_interval(secs => p_seconds);
    IF v_silent IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(DISTINCT n.zone ORDER BY n.zone) INTO v_zones FROM shards s JOIN nodes n ON n.id = s.node_id
     WHERE s.id = ANY (v_silent)
        OR (s.state = 'lost' AND (EXISTS (SELECT 1 FROM repair_queue q WHERE q.reason = 'lost')
                                  OR EXISTS (SELECT 1 FROM shard_walks w WHERE w.shard_id = s.id AND w.passes = 0)));
    SELECT count(*) FILTER (WHERE s.id = ANY (v_silent) OR s.state = 'lost'), count(*)
      INTO v_gone, v_all FROM shards s;
    IF cardinality(v_zones) > 1 THEN
        refused := format('shards %s are silent, and zones %s would not be whole: a verdict takes one zone at most',
                          array_to_string(v_silent, ', '), array_to_string(v_zones, ', '));
    ELSIF 2 * v_gone >= v_all THEN
        refused := format('shards %s are silent: %s of %s shards would be lost, and a verdict takes less than half',
                          array_to_string(v_silent, ', '), v_gone, v_all);
    ELSE
        declared := v_silent;
        PERFORM set_shard_state(d, 'lost', format('verdict: silent for more than %s s', p_seconds), p_principal, '')
           FROM unnest(v_silent) AS d;
    END IF;
END
$$;

-- Let shards that a verdict took, and that their owners report again, come back: their copies are doubted first, and
-- count once they have been read. What an administrator declared lost, only an administrator brings back.
CREATE FUNCTION return_shards()
RETURNS smallint[] LANGUAGE sql AS $$
    WITH back AS (
        UPDATE shard_walks w
           SET kind = 'return', cursor = NULL, walked = 0, kept_back = 0, passes = 0, due_at = now(), started_at = now()
          FROM shards s
          JOIN nodes n ON n.id = s.node_id AND n.incarnation = s.owner AND node_is_up(n)
          JOIN shard_space f ON f.shard_id = s.id AND f.silent_since IS NULL AND f.reported_at > s.state_since
         WHERE w.shard_id = s.id AND w.kind = 'lost' AND s.state = 'lost' AND s.state_reason LIKE 'verdict: %'
        RETURNING w.shard_id
    )
    SELECT coalesce(array_agg(b.shard_id ORDER BY b.shard_id), '{}') FROM back b
$$;

-- A disk that does not answer is reported with no capacity: since when, whoever reports it.
CREATE FUNCTION note_silence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.silent_since := CASE
        WHEN NEW.capacity_bytes > 0 THEN NULL
        WHEN TG_OP = 'UPDATE' AND OLD.silent_since IS NOT NULL THEN OLD.silent_since
        ELSE clock_timestamp()
    END;
    RETURN NEW;
END
$$;
CREATE TRIGGER shard_space_silence BEFORE INSERT OR UPDATE ON shard_space
    FOR EACH ROW EXECUTE FUNCTION note_silence();

-- The owner read a replica again and found it right: it counts again.
CREATE FUNCTION reinstate_replica(p_shard smallint, p_generation uuid)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE replicas r SET state = 'live'
     WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.state = 'suspect';
    RETURN FOUND;
END
$$;

-- The owner proved a replica by its sha256, so the block digests that it contradicts are wrong.
CREATE FUNCTION correct_block_digests(p_shard smallint, p_generation uuid, p_blocks bytea)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_blob   bigint;
    v_sha256 bytea;
BEGIN
    SELECT r.blob_id INTO v_blob FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation;
    SELECT b.sha256 INTO v_sha256 FROM blobs b WHERE b.id = v_blob FOR NO KEY UPDATE;
    PERFORM 1 FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = v_blob;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE blobs b SET block_digests = p_blocks WHERE b.id = v_blob AND b.block_digests <> p_blocks;
    IF FOUND THEN
        INSERT INTO events (kind, sha256, principal, request_id, detail)
        VALUES ('digests', v_sha256, 'holdfast', '',
                jsonb_build_object('shard', p_shard, 'generation', p_generation));
    END IF;
    UPDATE replicas r SET state = 'live'
     WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.state = 'suspect';
    RETURN true;
END
$$;

-- The owner proved a replica bad. 'condemned': another good copy exists, so this one is the blob's no
-- more and its file may go to quarantine; 'last': there is none, so it is only marked suspect; 'gone':
-- it is not the blob's any more.
CREATE FUNCTION condemn_replica(p_shard smallint, p_generation uuid, p_reason text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_blob   bigint;
    v_sha256 bytea;
    v_size   bigint;
BEGIN
    SELECT r.blob_id INTO v_blob FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation;
    SELECT b.sha256, b.size INTO v_sha256, v_size FROM blobs b WHERE b.id = v_blob FOR NO KEY UPDATE;
    -- Suspect first: it is known to be bad, whatever becomes of it.
    UPDATE replicas r SET state = 'suspect'
     WHERE r.shard_id = p_shard AND r.generation = p_generation AND r.blob_id = v_blob;
    IF NOT FOUND THEN
        RETURN 'gone';
    END IF;
    PERFORM enqueue_repair(v_blob, 'corrupt');
    PERFORM 1 FROM good_replicas(v_blob);
    IF NOT FOUND THEN
        RETURN 'last';
    END IF;
    INSERT INTO quarantine (shard_id, generation, sha256, size, reason)
    VALUES (p_shard, p_generation, v_sha256, v_size, p_reason);
    UPDATE replicas r SET state = 'condemned', blob_id = NULL
     WHERE r.shard_id = p_shard AND r.generation = p_generation;
    INSERT INTO events (kind, sha256, principal, request_id, detail)
    VALUES ('quarantine', v_sha256, 'holdfast', '',
            jsonb_build_object('shard', p_shard, 'generation', p_generation, 'reason', p_reason));
    RETURN 'condemned';
END
$$;

-- The owner looked, on an intact shard, and these files are not there. Their rows go where the blob has
-- another good copy; the others are marked suspect, in case the file is found again. Returns how many
-- of each; whatever is no longer some blob's is neither.
CREATE FUNCTION drop_absent_replicas(
    p_shard smallint, p_generations uuid[], OUT dropped bigint, OUT kept bigint
)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM blobs b
      WHERE b.id IN (SELECT r.blob_id FROM replicas r WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations))
      ORDER BY b.sha256 FOR NO KEY UPDATE;
    -- All of them first: of two copies of a blob that are absent together, neither vouches for the other.
    UPDATE replicas r SET state = 'suspect'
     WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations) AND r.state = 'live';
    PERFORM enqueue_repair(g.blob_id, 'missing') FROM (
        SELECT DISTINCT r.blob_id FROM replicas r
         WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations) AND r.state = 'suspect' ORDER BY 1
    ) AS g;
    DELETE FROM replicas r
     WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations) AND r.state = 'suspect'
       AND EXISTS (SELECT 1 FROM good_replicas(r.blob_id));
    GET DIAGNOSTICS dropped = ROW_COUNT;
    SELECT count(*) INTO kept FROM replicas r
     WHERE r.shard_id = p_shard AND r.generation = ANY (p_generations) AND r.state = 'suspect';
    IF dropped > 0 THEN
        INSERT INTO events (kind, principal, request_id, detail)
        VALUES ('absent', 'holdfast', '',
                jsonb_build_object('shard', p_shard, 'dropped', dropped, 'generations', p_generations));
    END IF;
END
$$;

-- Whether files that no row knows must stay: after history was lost they may be all that is left of it.
CREATE FUNCTION strays_are_held()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT deletions_held()
$$;

-- Whether rows may be made from files: in a database restored from a backup, until deletions are released.
CREATE FUNCTION rebuild_is_on()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM holds WHERE reason = 'rebuild' AND released_at IS NULL)
$$;

-- Make rows of a file that its shard's owner found and read whole. 'adopted': the blob is known, and has one
-- copy more; 'found': nothing was known of it; 'refused': the file has a row, be it a condemned one, or no
-- rebuild is on. A blob that nothing refers to becomes a candidate of gc, which is held meanwhile.
CREATE FUNCTION adopt_found(
    p_shard smallint, p_generation uuid, p_uid uuid, p_sha256 bytea, p_sha1 bytea, p_md5 bytea, p_size bigint,
    p_blocks bytea, p_redundancy smallint
)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_blob bigint;
    v_new  boolean;
BEGIN
    IF NOT rebuild_is_on()
       OR EXISTS (SELECT 1 FROM replicas r WHERE r.shard_id = p_shard AND r.generation = p_generation) THEN
        RETURN 'refused';
    END IF;
    LOOP
        INSERT INTO blobs AS b (uid, sha256, sha1, md5, size, redundancy, block_digests)
        VALUES (p_uid, p_sha256, p_sha1, p_md5, p_size, p_redundancy, p_blocks)
        ON CONFLICT (sha256) DO NOTHING
        RETURNING b.id INTO v_blob;
        v_new := v_blob IS NOT NULL;
        EXIT WHEN v_new;
        SELECT b.id INTO v_blob FROM blobs b WHERE b.sha256 = p_sha256 FOR SHARE;
        EXIT WHEN FOUND;
    END LOOP;
    INSERT INTO replicas (shard_id, generation, blob_id) VALUES (p_shard, p_generation, v_blob)
    ON CONFLICT (shard_id, generation) DO NOTHING;
    IF v_new THEN
        PERFORM release_blob(v_blob);
        INSERT INTO events (kind, sha256, principal, request_id, detail)
        VALUES ('found', p_sha256, 'holdfast', '',
                jsonb_build_object('shard', p_shard, 'generation', p_generation, 'size', p_size));
    END IF;
    -- No repair yet: its other copies may be found next. The census looks when the rebuild is over.
    RETURN CASE WHEN v_new THEN 'found' ELSE 'adopted' END;
END
$$;

-- Condemn files that no row knows, by their keys: a late commit that would refer to one conflicts with it.
-- Returns those that were condemned; whatever has got a row by now is not.
CREATE FUNCTION condemn_strays(p_shard smallint, p_generations uuid[], p_sha256 bytea[], p_sizes bigint[])
RETURNS SETOF uuid LANGUAGE plpgsql AS $$
DECLARE
    v_condemned uuid[];
BEGIN
    IF strays_are_held() THEN
        RETURN;
    END IF;
    WITH condemned AS (
        INSERT INTO replicas AS r (shard_id, generation, state)
        SELECT p_shard, f.generation, 'condemned' FROM unnest(p_generations) AS f (generation)
         ORDER BY f.generation
        ON CONFLICT (shard_id, generation) DO NOTHING
        RETURNING r.generation
    )
    SELECT coalesce(array_agg(c.generation), '{}') INTO v_condemned FROM condemned c;
    INSERT INTO quarantine (shard_id, generation, sha256, size, reason)
    SELECT p_shard, f.generation, f.sha256, f.size, 'stray'
      FROM unnest(p_generations, p_sha256, p_sizes) AS f (generation, sha256, size)
     WHERE f.generation = ANY (v_condemned);
    INSERT INTO events (kind, sha256, principal, request_id, detail)
    SELECT 'quarantine', f.sha256, 'holdfast', '',
           jsonb_build_object('shard', p_shard, 'generation', f.generation, 'reason', 'stray')
      FROM unnest(p_generations, p_sha256) AS f (generation, sha256) WHERE f.generation = ANY (v_condemned);
    RETURN QUERY SELECT unnest(v_condemned);
END
$$;

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
-- Not a new token: nobody has more than proved who they are by one that was there.
CREATE TRIGGER tokens_announced AFTER UPDATE OR DELETE ON tokens
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER groups_announced AFTER INSERT OR UPDATE OR DELETE ON groups
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER group_members_announced AFTER INSERT OR UPDATE OR DELETE ON group_members
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER permission_targets_announced AFTER INSERT OR UPDATE OR DELETE ON permission_targets
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER permission_grants_announced AFTER INSERT OR UPDATE OR DELETE ON permission_grants
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
CREATE TRIGGER shards_announced AFTER INSERT OR DELETE ON shards
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
-- Not that it was claimed or released, as one that cannot be opened is all the time: what its node has open is announced
-- by that node when it has reported it.
CREATE TRIGGER shards_change_announced AFTER UPDATE ON shards
    FOR EACH ROW WHEN ((old.node_id, old.path, old.weight, old.state, old.replaced)
                       IS DISTINCT FROM (new.node_id, new.path, new.weight, new.state, new.replaced))
    EXECUTE FUNCTION announce_change();
