"""Texts of a few words, one beside the other."""


def each(texts: str) -> list[str]:
    """Those that ``|`` or a line's end parts."""
    return [text.strip() for text in texts.replace("\n", "|").split("|") if text.strip()]
