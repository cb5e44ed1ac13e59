"""Who does the work: processes of this machine, or a Dask cluster where the data outgrows it.

Dask and not Ray: a unit of work is a function of one chunk of pictures or one shard, with nothing
shared between units, so a scheduler with workers is all that is asked for. Dask is plain Python
(a few MB, no daemon, no object store), speaks to any scheduler address that `dask scheduler` and
its starters for Slurm, Kubernetes or SSH print, and its local cluster is real processes, which a
test can use. What either does, and in which order results come, is the same.

Workers are sent names of functions and small arguments; they need this project's code, the same
paths to the images and, unless shards go to an address, to the work folder. Whoever reaches a Dask
scheduler can run code on its cluster: keep it on a network of your own, or give it TLS.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from stages.data.processes import in_processes
from stages.errors import Interrupted, UserError

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_SECONDS = 30
_QUEUED = 3  # units for each thread of the cluster; the others wait here

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Engine:
    """Where units of work run.

    Attributes:
        processes: of this machine; 1 works in this one.
        scheduler: address of a Dask cluster that does the work instead; None: none.
    """

    processes: int = 1
    scheduler: str | None = None

    def each(
        self, work: Callable[[Task], Result], tasks: Sequence[Task], *, few: bool = False
    ) -> Iterator[Result]:
        """work(task) of each task, in order.

        Args:
            work: of a module of ours, or a partial of such.
            tasks: small enough to be sent.
            few: too little to start processes for.

        Raises:
            UserError: no cluster at the address, or its workers lack this project.
            Interrupted: the cluster was lost.
        """
        if self.scheduler is None:
            return in_processes(work, tasks, 1 if few else self.processes)
        return _on_cluster(self.scheduler, work, tasks)


def _on_cluster(
    scheduler: str, work: Callable[[Task], Result], tasks: Sequence[Task]
) -> Iterator[Result]:
    with _connected(scheduler) as client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise UserError(
                f"the Dask cluster at {scheduler} has no workers.\n"
                f"  Start some in a checkout of this project: dask worker {scheduler}"
            )
        waiting = iter(tasks)
        running = deque(
            client.submit(work, task, pure=False) for task in islice(waiting, _QUEUED * threads)
        )
        while running:
            yield _result_of(running.popleft(), scheduler)
            running.extend(client.submit(work, task, pure=False) for task in islice(waiting, 1))


def _connected(scheduler: str) -> "Client":
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(
            f"runtime.dask_scheduler needs the package distributed ({error}).\n"
            "  Install it into .venv: uv pip install --python .venv/bin/python distributed"
        ) from error
    try:
        return Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask cluster answers at {scheduler} ({error}).\n"
            "  Start one (dask scheduler; dask worker ADDRESS), mend runtime.dask_scheduler in "
            "params.yaml, or write null to work on this machine."
        ) from error


def _result_of(future: "Future[Any]", scheduler: str) -> Any:
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        return future.result()
    except ModuleNotFoundError as error:
        raise UserError(
            f"workers of the Dask cluster at {scheduler} lack {error.name}.\n"
            "  Start them in a checkout of this project with its packages, at the same commit."
        ) from error
    except (KilledWorker, CommClosedError, CancelledError) as error:
        raise Interrupted(
            f"the Dask cluster at {scheduler} was lost ({error}).\n  Finished shards are kept: the "
            "same command continues with the others."
        ) from error
