"""The store: all trees of a folder, found by prefix, id or name; kept, exported, forgotten."""
