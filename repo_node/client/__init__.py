"""A client of a node's REST: sessions, retries, and verified uploads and downloads. Knows no terminal."""
