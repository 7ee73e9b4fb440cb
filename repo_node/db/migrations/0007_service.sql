-- Nodes tell what they were written for and that they leave, and can be asked to stop.

ALTER TABLE nodes ADD COLUMN schema_version integer;
ALTER TABLE nodes ADD COLUMN leaving uuid;
ALTER TABLE nodes ADD COLUMN stop_asked uuid;

-- The last time of each cron expression that has been served; the expression's first sight, before that.
CREATE TABLE schedules (
    job        text PRIMARY KEY COLLATE "C",
    cron       text NOT NULL,
    served_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
