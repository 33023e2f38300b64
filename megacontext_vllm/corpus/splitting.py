"""Which split a document belongs to."""

import hashlib

from megacontext_vllm.corpus.document import Split


def split_of(document_id: str, test: float, validation: float) -> Split:
    """By the hash of its id alone: a document added or gone moves no other. The shares are 0 to 1."""
    place = int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8]) / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"
