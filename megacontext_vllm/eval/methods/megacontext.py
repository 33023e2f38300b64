"""MegaContext as it is served without a trained GistNet: what is not expanded is hidden."""

from megacontext_vllm.eval.methods.focused import Focused


class MegaContext(Focused):
    """The lens's blocks raw, head and tail pinned, gap markers for the rest."""

    name = "megacontext"
    summary = "MegaContext as served: focus over blocks of 32, the rest hidden"
    gists = False
