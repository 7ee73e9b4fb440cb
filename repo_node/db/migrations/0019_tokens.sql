-- A user's tokens are found without reading all, and a new one, which takes nothing from anybody, is no news to nodes.

CREATE INDEX tokens_of_user ON tokens (user_id);
DROP TRIGGER tokens_announced ON tokens;
CREATE TRIGGER tokens_announced AFTER UPDATE OR DELETE ON tokens
    FOR EACH STATEMENT EXECUTE FUNCTION announce_change();
