"""MegaCuration: what of a store nobody uses is compacted, archived or deleted, by a plan, and can be brought back."""
