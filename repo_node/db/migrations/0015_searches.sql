-- Artifacts are searched.

-- For searches by name and by time; the latter costs next to nothing because rows of one time lie together.
CREATE INDEX artifacts_by_name ON artifacts (name);
CREATE INDEX artifacts_by_time ON artifacts USING brin (created_at, modified_at, downloaded_at)
    WITH (pages_per_range = 32, autosummarize = on);
