"""Training of GistNet: gradients of a frozen model's loss flow through it into the gists that it is shown.

recipe → windows of text → packing (which Working Contexts are made of them) → losses → loop; validation beside it.
"""
