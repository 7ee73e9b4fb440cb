-- A token with tens of thousands of others below it could not be revoked within a statement's deadline.

DROP FUNCTION revoke_tokens(bigint[]);
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
