"""Where gists stand when they are judged: [sink token][gists][raw tail][64 targets]."""

from dataclasses import dataclass

BLOCK = 32
TARGETS = 64
"""Tokens whose NLL is measured: ΔNLL@64."""


@dataclass(frozen=True)
class GistLayout:
    """One way to show a window: ``gists`` of ``level``, then ``tail`` raw tokens, then the targets.

    full  whether the window is also read raw, which the recovered fraction needs. Without it gists are only compared
          with leaving the older part out, which works for more tokens than the model has positions for.
    """

    name: str
    level: int
    gists: int
    tail: int
    full: bool = True

    @property
    def span(self) -> int:
        """Tokens under one gist."""
        return BLOCK**self.level

    @property
    def older(self) -> int:
        """Tokens that are shown as gists."""
        return self.gists * self.span

    @property
    def length(self) -> int:
        """Tokens of a window, targets included."""
        return self.older + self.tail + TARGETS


HARD_1 = GistLayout("hard, LOD1", 1, 28, 128)
HARD_2 = GistLayout("hard, LOD2", 2, 4, 128)  # 28 of these would be more than the default model has positions for
NEAR_1 = GistLayout("near, LOD1", 1, 28, 32)
NEAR_2 = GistLayout("near, LOD2", 2, 2, 0)
STANDARD = (HARD_1, NEAR_1, HARD_2, NEAR_2)


def harmless(level: int, gists: int, tail: int = BLOCK) -> GistLayout:
    """A layout that only asks whether gists do harm."""
    return GistLayout(f"{gists} × LOD{level}", level, gists, tail, full=False)


HARMLESS = (*(harmless(1, gists) for gists in (1, 8, 64, 256, 1024)), *(harmless(2, gists) for gists in (1, 8, 32)))
QUICK = (HARD_1, NEAR_1, harmless(1, 1), harmless(1, 64), harmless(2, 1))
QUICK_WINDOWS = 12
