"""What gists are worth to a frozen model: the NLL of text behind gists of what came before it.

windows of held-out documents → layouts → makers → losses → recovered fraction. Definitions: docs/quality.md.
"""
