-- A census is repeated, and asks for the copies of what only the trash refers to too.

CREATE OR REPLACE FUNCTION take_census(p_count integer, p_redundancy smallint, p_period_seconds double precision)
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
