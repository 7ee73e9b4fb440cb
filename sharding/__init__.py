"""The binary store as a library: placement, shards, writing, reading. It knows no HTTP surface and no SQL."""
