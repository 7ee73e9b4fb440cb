-- The store heals itself: jobs.

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
