"""``python -m megacontext_vllm.cli`` where the command is not on the path."""

import sys

from megacontext_vllm.cli import main

sys.exit(main())
