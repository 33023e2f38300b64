"""The model's tokenizer, for showing stored token ids as text. Loaded from a folder; no network, no torch."""

from collections.abc import Callable
from pathlib import Path

from megacontext_vllm.cli.text import one_line
from megacontext_vllm.errors import RequestError


def load_decoder(folder: Path) -> Callable[[list[int]], str]:
    """A function from token ids to text, special tokens included; it raises RequestError for ids of another model.

    Raises RequestError if the folder holds no tokenizer that can be loaded.
    """
    if not folder.exists():
        raise RequestError(f"there is no tokenizer folder {folder}: give a local folder with tokenizer.json")
    file = folder / "tokenizer.json"
    try:
        if file.exists():
            from tokenizers import Tokenizer  # type: ignore[import-untyped,unused-ignore]

            tokenizer = Tokenizer.from_file(str(file))
            size = tokenizer.get_vocab_size(with_added_tokens=True)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            size = len(tokenizer)
    except ImportError as error:
        raise RequestError(f"--tokenizer needs the package {error.name}: pip install {error.name}") from None
    except Exception as error:  # tokenizers raises bare Exception
        raise RequestError(f"{folder} holds no tokenizer that can be loaded: {one_line(error)}") from None

    def decode(ids: list[int]) -> str:
        if ids and max(ids) >= size:
            raise RequestError(
                f"token {max(ids)} is beyond the {size:,} tokens of {folder}: the tree is another model's"
            )
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return decode
