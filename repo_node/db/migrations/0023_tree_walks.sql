-- An artifact is looked up by its place, not among all of its name. Lists of which somebody sees little, or only the upper
-- levels, pass over what they do not show.

ALTER TABLE artifacts ALTER COLUMN name SET (n_distinct = -0.1);
ANALYZE artifacts (name);

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
