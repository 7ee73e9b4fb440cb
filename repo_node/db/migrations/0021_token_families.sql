-- Tokens end no later than the one that made them, and with it; some are renewed by refresh tokens; what has ended is let
-- go of after a while.

ALTER TABLE tokens ADD COLUMN parent_id bigint REFERENCES tokens (id);
ALTER TABLE tokens ADD COLUMN lifetime interval;
ALTER TABLE tokens ADD COLUMN refresh_sha256 bytea UNIQUE CHECK (length(refresh_sha256) = 32);
ALTER TABLE tokens ADD COLUMN refreshable_until timestamptz;
ALTER TABLE tokens ADD CONSTRAINT tokens_refreshable CHECK (
    (refresh_sha256 IS NULL) = (refreshable_until IS NULL) AND (refresh_sha256 IS NULL OR expires_at IS NOT NULL)
    AND (refresh_sha256 IS NULL) = (lifetime IS NULL));
CREATE INDEX tokens_of_parent ON tokens (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX tokens_by_end ON tokens (least(revoked_at, greatest(expires_at, refreshable_until)));

CREATE TABLE used_refresh_tokens (
    sha256    bytea PRIMARY KEY CHECK (length(sha256) = 32),
    token_id  bigint NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    used_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX used_refresh_tokens_of_token ON used_refresh_tokens (token_id);
CREATE INDEX used_refresh_tokens_by_age ON used_refresh_tokens (used_at);

-- End tokens and whatever was made by them; returns which have ended by this call. Whoever makes one holds the row of
-- its parent, so that each level is looked for when the one above it makes none any more.
CREATE FUNCTION revoke_tokens(p_tokens bigint[])
RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    v_level bigint[] := p_tokens;
    v_ended bigint[];
    v_all bigint[] := '{}';
BEGIN
    WHILE cardinality(v_level) > 0 LOOP
        WITH ended AS (
            UPDATE tokens t SET revoked_at = clock_timestamp()
             WHERE t.id = ANY (ARRAY(SELECT l.id FROM tokens l WHERE l.id = ANY (v_level) ORDER BY l.id FOR NO KEY UPDATE))
               AND t.revoked_at IS NULL
            RETURNING t.id
        )
        SELECT coalesce(array_agg(e.id ORDER BY e.id), '{}') INTO v_ended FROM ended e;
        v_all := v_all || v_ended;
        v_level := ARRAY(SELECT c.id FROM tokens c WHERE c.parent_id = ANY (v_level));
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
