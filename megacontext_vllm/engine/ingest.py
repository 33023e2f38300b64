"""Making the gists of a tree, a bounded piece per engine step, until every complete node has one.

The worker commits rows to the tree's files; this side only ever looks at the committed counts. A level's nodes are
asked for once their children are committed, so that every rank can read them. Gists that an older GistNet made, or that
are damaged, are made again in place first, with the tree readable throughout.
"""

import logging
from dataclasses import dataclass, field

from megacontext_vllm.engine.step_work import GistJob
from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.gists import begin_refresh, finish, level_header, newest, stale
from megacontext_vllm.tree.nodes import BLOCK, depth, num_nodes
from megacontext_vllm.tree.refresh import Refresh
from megacontext_vllm.tree.tree import MegaContextTree

logger = logging.getLogger("vllm.megacontext")

TRIES = 3


@dataclass
class TreeIngest:
    """Progress of one tree up to ``length`` tokens. ``asked[level]``: nodes asked of the worker so far.

    ``net``: fingerprint of the GistNet whose gists are wanted.

    ``refresh``: what is left to be made again, None once that is done; ``renewing``: such jobs under way.
    """

    tree: MegaContextTree
    length: int
    net: bytes
    asked: dict[int, int] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    failures: int = 0
    refresh: Refresh | None = None
    renewing: int = 0

    def __post_init__(self) -> None:
        self.renew()
        self._read_counts()
        self.asked = dict(self.committed)

    def _read_counts(self) -> None:
        self.committed = {level: self.tree.gist_count(level) for level in range(1, depth(self.length) + 1)}

    def extend(self, length: int) -> None:
        """The tree grew (or a longer history joined); make gists up to ``length`` tokens."""
        if length > self.length:
            self.length = length
            for level in range(1, depth(length) + 1):
                self.committed.setdefault(level, self.tree.gist_count(level))
                self.asked.setdefault(level, self.committed[level])

    def renew(self) -> None:
        """See whether gists have to be made again, or were cut off. Raises CorruptTreeError, StoreError."""
        for level, committed in self.committed.items():
            if (left := self.tree.gist_count(level)) < committed:
                self.committed[level] = self.asked[level] = left
        if self.refresh is None and not finish(self.tree.path):
            self.refresh = Refresh(self.tree, "eager")

    def covers(self, length: int) -> bool:
        """Whether every complete node below ``length`` tokens has its gist committed, by the newest GistNet."""
        levels = range(1, depth(length) + 1)
        return self.refresh is None and all(self.committed.get(n, 0) >= num_nodes(length, n) for n in levels)

    @property
    def failed(self) -> bool:
        return self.failures >= TRIES

    def next_jobs(self, tokens_allowed: int) -> list[GistJob]:
        """Up to ``tokens_allowed // 32`` nodes to make next, lowest level first."""
        jobs: list[GistJob] = []
        nodes_allowed = tokens_allowed // BLOCK
        if self.refresh is not None:
            # What is left is read from the disk, so ask again only when all that was asked for is there.
            if not self.renewing and nodes_allowed:
                for level, start, stop in self.refresh.next_nodes(nodes_allowed):
                    jobs.append(self._job(level, start, stop, again=True))
                self.renewing = len(jobs)
            return jobs
        for level in range(1, depth(self.length) + 1):
            start = self.asked[level]
            ready = num_nodes(self.length, level)
            if level > 1:
                ready = min(ready, self.committed[level - 1] // BLOCK)
            stop = min(ready, start + nodes_allowed)
            if stop <= start:
                continue
            jobs.append(self._job(level, start, stop))
            self.asked[level] = stop
            nodes_allowed -= stop - start
        return jobs

    def _job(self, level: int, start: int, stop: int, again: bool = False) -> GistJob:
        tokens = None
        if level == 1:
            tokens = self.tree.read_tokens(start * BLOCK, stop * BLOCK).reshape(-1, BLOCK)
        return GistJob(str(self.tree.path), level, start, stop, tokens, again)

    def executed(self, job: GistJob) -> None:
        """The step that carried ``job`` has run: see whether its rows are there, else ask again."""
        if job.again:
            self._renewed(job)
            return
        try:
            committed = self.tree.gist_count(job.level)
        except (StoreError, OSError) as error:  # damaged under our hands; three of these and we do without gists
            logger.error("MegaContext: %s", error)
            committed = self.committed[job.level]
        self.committed[job.level] = committed
        if committed >= job.stop and not self._of_the_net():
            self.failures = TRIES  # an engine with another net began this tree's gists in the same moment
        elif committed >= job.stop:
            self.failures = 0
            # Another engine of this store may be making them, too.
            self.asked[job.level] = max(self.asked[job.level], committed)
        else:
            self.failures += 1
            self.asked[job.level] = committed

    def _of_the_net(self) -> bool:
        try:
            return newest(self.tree.path) == self.net
        except (StoreError, OSError) as error:
            logger.error("MegaContext: %s", error)
            return False

    def _renewed(self, job: GistJob) -> None:
        self.renewing = max(self.renewing - 1, 0)
        try:
            failed = bool(stale(self.tree.path, job.level, self.tree.sealed)[job.start : job.stop].any())
            if not self.renewing and finish(self.tree.path):
                self.refresh = None
        except (StoreError, OSError) as error:
            logger.error("MegaContext: %s", error)
            failed = True
        self.failures = self.failures + 1 if failed else 0


class Ingest:
    """All trees whose gists are being made, in the order they came."""

    def __init__(self, tokens_per_step: int, gist_fingerprint: bytes | None) -> None:
        self._tokens_per_step = tokens_per_step
        self._gist_fingerprint = gist_fingerprint
        self._trees: dict[str, TreeIngest] = {}

    def __len__(self) -> int:
        return len(self._trees)

    def watch(self, tree: MegaContextTree, length: int) -> TreeIngest:
        """Start, or extend, making the gists of ``tree`` up to ``length`` tokens.

        Raises StoreError where gists have to be dropped and another process is the tree's writer.
        """
        key = str(tree.path)
        known = self._trees.get(key)
        # Another handle of the same tree: the known one was closed when its last holder went away.
        if known is not None and known.tree is tree:
            known.renew()
            known.extend(length)
            return known
        net = self._gist_fingerprint
        assert net is not None, "gists are asked for without a net"
        self._prepare(tree, net)
        self._trees[key] = TreeIngest(tree, length, net)
        return self._trees[key]

    def _prepare(self, tree: MegaContextTree, net: bytes) -> None:
        """Have gists that another net made, or whose file is damaged, made again."""
        for level in range(1, depth(tree.length) + 1):
            try:
                header = level_header(tree.gist_path(level))
            except CorruptTreeError as error:
                logger.warning("MegaContext: the gists of tree %s are made again: %s", tree.tree_id, error)
                tree.drop_gists()  # LOD0 is the truth and gists are made again from it
                return
            if header is not None and header.gist_fingerprint != net:  # also where whoever began it wrote nothing
                if not tree.writable:
                    raise StoreError(f"the gists of {tree.path} are another GistNet's, and another process writes it")
                logger.info("MegaContext: the gists of tree %s are refreshed with the present GistNet", tree.tree_id)
                begin_refresh(tree.path, net)
                return

    def keep(self, wanted: set[str]) -> None:
        """Forget every tree but those whose paths are ``wanted``."""
        for path in self._trees.keys() - wanted:
            del self._trees[path]

    def next_jobs(self) -> list[GistJob]:
        """Jobs for the step being scheduled; the bound holds over all trees together."""
        jobs: list[GistJob] = []
        allowed = self._tokens_per_step
        for progress in self._trees.values():
            new = progress.next_jobs(allowed)
            jobs += new
            allowed -= sum(job.stop - job.start for job in new) * BLOCK
            if allowed < BLOCK:
                break
        return jobs

    def executed(self, jobs: list[GistJob]) -> None:
        for job in jobs:
            progress = self._trees.get(job.tree_path)
            if progress is not None:
                progress.executed(job)
