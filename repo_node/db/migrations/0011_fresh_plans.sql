-- Deletions keep no plan that was made while the table was nearly empty, and reads an index whole once it is not.

ALTER FUNCTION delete_step(integer, text, text, bigint, text, text) SET plan_cache_mode = force_custom_plan;
