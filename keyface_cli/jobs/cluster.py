"""Pieces of work shared out over the machines of a Ray cluster.

Every worker is an actor that is set up once (so a model is loaded once) and makes one piece after
the other. Files are read and written where the pieces say, so all machines see them under the same
paths. A worker that is lost, with its process or its machine, loses nothing but time: its piece
is made again by another.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

from keyface_cli.errors import DeviceError

logger = logging.getLogger(__name__)
Piece = TypeVar("Piece")
Make = Callable[[Piece], Piece]

LOCAL = "local"  # in the place of an address: a cluster of this machine alone, for this run
TRIES = 3  # of a piece that loses its workers: more would follow a piece that kills them
SETTLE_S = 5.0  # until a lost worker has let go of the files of its piece
_END: Any = object()  # of the pieces
_LOOK_S = 0.5  # how often to look for the end of that, and for Ctrl-C


class _Try(NamedTuple, Generic[Piece]):
    piece: Piece
    number: int = 1
    not_before: float = 0.0


def distribute(
    pieces: Iterator[Piece | None],
    set_up: Callable[[], Make[Piece]],
    lose: Callable[[Piece], None],
    *,
    address: str,
    workers: int | None = None,
    again: Callable[[Piece], Piece] = lambda piece: piece,
) -> Iterator[Piece]:
    """Have every piece made by the workers of a cluster, and yield them as they are finished.

    Args:
        pieces: taken one by one as workers become free; each can be pickled. None is none for now:
            what comes next waits for a piece that is being made.
        set_up: makes what turns a piece into the finished one, once in every worker.
        lose: told of a piece whose workers were lost `TRIES` times.
        address: of the cluster as `ray.init` takes it ("auto" is the one of this machine), or
            `LOCAL`.
        workers: how many at once; None is one for each GPU, or without any for each machine.
        again: what a piece is made from after its worker was lost, which may have finished it.

    Raises:
        DeviceError: Ray is not installed, there is no such cluster, or a worker cannot be set up.
    """
    ray = _connect(address, workers)
    try:
        count, needs = _size(ray, workers)
        logger.info("cluster of %d machines: %d workers", len(ray.nodes()), count)
        kind = ray.remote(_Worker).options(scheduling_strategy="SPREAD", max_restarts=0, **needs)
        hire = partial(kind.remote, set_up)
        yield from _run(ray, pieces, hire, next(iter(needs)), lose, again, count)
    finally:
        ray.shutdown()


class _Worker:
    def __init__(self, set_up: Callable[[], Make[Any]]) -> None:
        self._make = set_up()

    def make(self, piece: Any) -> Any:
        return self._make(piece)


def _run(
    ray: Any,
    pieces: Iterator[Piece | None],
    hire: Callable[[], Any],
    need: str,
    lose: Callable[[Piece], None],
    again: Callable[[Piece], Piece],
    count: int,
) -> Iterator[Piece]:
    retries: deque[_Try[Piece]] = deque()
    running: dict[Any, tuple[Any, _Try[Piece]]] = {}
    idle: list[Any] = []
    left = True
    while left or retries or running:
        # one more worker only where there is a place: after a loss there is one less
        while len(running) < count and (idle or not running or _free(ray, need)):
            if retries and retries[0].not_before <= time.monotonic():
                one = retries.popleft()
            elif left:
                piece = next(pieces, _END)
                if piece is None or piece is _END:
                    left = piece is None
                    break
                one = _Try(cast(Piece, piece))
            else:
                break
            worker = idle.pop() if idle else hire()
            running[worker.make.remote(one.piece)] = (worker, one)
        if not left and not retries:
            while idle:  # a worker that still waits for a place gets this one's
                ray.kill(idle.pop())
        if not running:  # what is left waits, for its lost worker to let go or for its turn
            time.sleep(_LOOK_S)
            continue
        for done in ray.wait(list(running), num_returns=1, timeout=_LOOK_S)[0]:
            worker, one = running.pop(done)
            try:
                finished = ray.get(done)
            except (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError) as error:
                if getattr(error, "actor_init_failed", False):
                    reason = str(error).strip().splitlines()[-1]
                    raise DeviceError(
                        f"a worker of the cluster cannot begin: {reason}",
                        "every machine needs the same keyface, and the model where it is here",
                    ) from error
                if one.number == TRIES:
                    lose(one.piece)
                    continue
                logger.warning("a worker was lost; its piece is made again by another")
                retries.append(_Try(again(one.piece), one.number + 1, time.monotonic() + SETTLE_S))
            else:
                idle.append(worker)
                yield finished


def _free(ray: Any, need: str) -> bool:
    name = {"num_gpus": "GPU", "num_cpus": "CPU"}[need]
    return bool(ray.available_resources().get(name, 0) >= 1)


def _connect(address: str, workers: int | None) -> Any:
    """Connect to a cluster, or start one on this machine; returns the package."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to its makers
    try:
        import ray
    except ImportError as error:
        raise DeviceError(
            "--cluster needs Ray, which is not installed", "pip install 'keyface[ray]'"
        ) from error
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == LOCAL:
            count = max(workers or 1, os.cpu_count() or 1)
            ray.init(num_cpus=count, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceError(
            f"no cluster at {address}: {reason}", "ray start --head starts one; see ray status"
        ) from error
    return ray


def _size(ray: Any, workers: int | None) -> tuple[int, dict[str, Any]]:
    """How many workers there are to be, and what Ray is to give each."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus:
        return min(workers or gpus, gpus), {"num_gpus": 1}
    machines = sum(bool(node["Alive"]) for node in ray.nodes())
    return workers or machines, {"num_cpus": 1}
