"""Entry point ``vllm.general_plugins``: runs in every vLLM process, any number of times.

Installed but not asked for, it only adds the ``--plugin`` flag; see ``activation.py`` for how to ask.
"""


def register() -> None:
    """Put the patches in place. ``MEGACONTEXT_DISABLE=1`` leaves stock vLLM, and the flag, which does nothing then."""
    from megacontext_vllm.engine import activation, patches
    from megacontext_vllm.engine.versions import is_tested, vllm_version

    for patch in activation.FLAG if activation.is_disabled() else activation.PATCHES:
        patches.apply(patch)
    if activation.is_disabled() or not is_tested(vllm_version()):
        return  # asking for the plugin is then refused, with the tested range; deeper names may not even exist
    from megacontext_vllm.engine import core, front_end, token_transport, tokenizing

    for patch in (*front_end.PATCHES, *tokenizing.PATCHES, *token_transport.PATCHES, *core.PATCHES):
        patches.apply(patch)
