-- Events tell from where.

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
