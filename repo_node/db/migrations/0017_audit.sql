-- Events tell from where, and stay as they are.

ALTER TABLE events ADD COLUMN address inet;

-- Whatever notes who asked takes the client's address too, as its last parameter and for the release before this one
-- with a default; what it does otherwise stays as it is here, so its text is changed and not repeated.
-- They call one another, in no order.
SET LOCAL check_function_bodies = off;
DO $$
DECLARE
    v_function record;
    v_text     text;
BEGIN
    FOR v_function IN
        SELECT p.oid, p.oid::regprocedure AS signature, p.prosrc, 'p_requests' = ANY (p.proargnames) AS many,
               pg_get_function_arguments(p.oid) AS arguments
          FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace AND p.proargnames && '{p_request,p_requests}'
           AND NOT p.proargnames && '{p_address,p_addresses}'
         ORDER BY p.oid
    LOOP
        v_text := pg_get_functiondef(v_function.oid);
        v_text := replace(v_text, '(' || v_function.arguments || ')', '(' || regexp_replace(
            v_function.arguments, '(, OUT |$)',
            CASE WHEN v_function.many THEN ', p_addresses inet[] DEFAULT NULL\1' ELSE ', p_address inet DEFAULT NULL\1' END
        ) || ')');
        v_text := replace(v_text, v_function.prosrc, regexp_replace(regexp_replace(regexp_replace(v_function.prosrc,
            '(INSERT INTO events[^()]*\([^()]*)\mrequest_id\M', '\1request_id, address', 'g'),
            '\mp_request\M', 'p_request, p_address', 'g'),
            '\mp_requests\[u\.n\]', 'p_requests[u.n], p_addresses[u.n]', 'g'));
        EXECUTE 'DROP FUNCTION ' || v_function.signature;
        EXECUTE v_text;
    END LOOP;
END
$$;
SET LOCAL check_function_bodies = on;

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

-- Replicas that repair, rebalance and trim take away are told of too.
CREATE OR REPLACE FUNCTION remove_later(
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

DROP FUNCTION place_hold(text, text, bigint);
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
