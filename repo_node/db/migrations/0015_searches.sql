-- Artifacts are searched.

-- For searches by name and by time; the latter costs next to nothing because rows of one time lie together. Names are
-- compared as patterns are: an order that listings want too would tempt a kept plan to read the whole index for one.
CREATE INDEX artifacts_by_name ON artifacts (name text_pattern_ops);
CREATE INDEX artifacts_by_time ON artifacts USING brin (created_at, modified_at, downloaded_at)
    WITH (pages_per_range = 32, autosummarize = on);
