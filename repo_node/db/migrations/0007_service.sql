-- Nodes tell what they were written for and that they leave, and can be asked to stop.

ALTER TABLE nodes ADD COLUMN schema_version integer;
ALTER TABLE nodes ADD COLUMN leaving uuid;
ALTER TABLE nodes ADD COLUMN stop_asked uuid;
