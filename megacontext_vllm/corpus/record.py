"""``python -m megacontext_vllm.corpus.record``: make the corpus anew and write into the manifest what it came to.

For whoever changes a source or a way of stripping. Look at the result (``megacontext corpus show``) before committing.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from megacontext_vllm.corpus.build import build, outcome
from megacontext_vllm.corpus.fetch import downloader
from megacontext_vllm.corpus.manifest import MANIFEST, load_manifest


def main() -> None:
    manifest = load_manifest()
    data = json.loads(manifest.raw)
    with tempfile.TemporaryDirectory() as temporary:
        documents = build(manifest, downloader(manifest, Path(temporary), None))
    for entry, source in zip(data["sources"], manifest.sources):
        entry["expected"] = asdict(outcome(source, documents))
        print(source.name, entry["expected"], file=sys.stderr)
    MANIFEST.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
