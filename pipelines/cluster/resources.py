"""How much of the cluster a job takes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from hybrid_models.errors import UsageError
from pipelines.cluster import connection

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compute:
    """How one actor computes."""

    batch_size: int
    """Samples in one forward pass, fewer where they are large (`BATCH_BYTES`), more where a GPU has room for them."""
    threads: int
    """CPU threads of torch."""
    gpu: bool
    """Whether the model goes to the actor's GPU."""
    gpu_share: float = 1.0
    """How much of that is this actor's."""


MODEL_MEMORY = 2 << 30  # of a node, for each model process on CPUs
MOST_GPUS = 1000
TINY = 1e-9  # 1 / 0.1 is a little less than 10
NO_CPUS = "no node of the cluster has CPUs for its jobs: add one (a head's num-cpus may be 0)"
SMALL_INPUT = 16 << 10
"""Bytes of shards, a hundred sentences, with which one process is done before a second one has started."""


@dataclass(frozen=True)
class Plan:
    """What a job takes of a cluster."""

    actors: int
    """Processes that hold the model at the beginning."""
    most: int
    """To how many they may grow."""
    compute: Compute
    asks: dict[str, float]
    """What each asks of Ray."""
    nodes: int
    """On how many nodes they may be."""


@dataclass(frozen=True)
class Resources:
    """What a batch job may take of the cluster; 0 means: decide by what the cluster has.

    Raises:
        UsageError: an option is out of its range.
    """

    min_actors: int = 0
    """Processes that hold the model, from the beginning on: by default one for each GPU, or without GPUs one for each
    CPU and 2 GiB."""
    max_actors: int = 0
    """To how many of them a job grows while there is work for them, as nodes join; by default it stays as it begins.
    Where no model is needed, so many processes read at the most, or `resources.min_actors` if that alone is given."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Whether each process that predicts takes a GPU: auto, if the cluster has any now; yes waits for those that an
    autoscaler brings."""
    gpus_per_actor: float = 1.0
    """GPUs that each such process takes: of 0.5, two share one."""
    batch_size: int = 32
    """Samples in one forward pass, fewer where they are large (16 MiB in all); on a GPU up to eight times as many, as
    half of its memory has room for."""
    threads: int = 0
    """CPU threads of each process that holds a model, also in training: by default the CPUs of its node, divided among
    these processes. With 1, as many trainings as there are CPUs can run side by side."""

    def __post_init__(self) -> None:
        for name, least in (("min_actors", 0), ("max_actors", 0), ("batch_size", 1), ("threads", 0)):
            if (value := getattr(self, name)) < least:
                raise UsageError(f"`resources.{name}` is {value}: it must be at least {least}")
        if not 0 < self.gpus_per_actor < MOST_GPUS or (self.gpus_per_actor > 1 and self.gpus_per_actor % 1):
            told = f"`resources.gpus_per_actor` is {self.gpus_per_actor:g}"
            raise UsageError(f"{told}: it must be a part of a GPU, or whole ones")

    def plan(self, shards: int, size: int) -> Plan:
        """For so many shards of so many bytes in all.

        Raises:
            UsageError: there is no node to compute on, or no GPU will come, or there are some, but fewer than actors;
                or processes are to grow to fewer than there are.
        """
        import ray  # not to tell what options there are

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        share = self.gpus_per_actor
        gpus = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
        there = sum(int(own / share + TINY) for own in gpus)
        if self.gpu == "auto" and any(gpus) and not there:
            raise UsageError(
                f"`resources.gpus_per_actor` is {share:g}, but a node has {max(gpus):g} at most: take fewer"
            )
        on_gpus = self.gpu == "yes" or (self.gpu == "auto" and there > 0)
        if not nodes and self.gpu != "yes":
            raise UsageError(NO_CPUS)
        if on_gpus and not there:
            connection.check_grows("`resources.gpu` is yes")
        if self.gpu == "auto" and 0 < there < self.min_actors:
            raise UsageError(
                f"`resources.min_actors` is {self.min_actors}, but the cluster has GPUs for {there}: use at most as "
                "many, or `resources.gpu` yes where the cluster grows"
            )
        if self.max_actors and self.max_actors < self.min_actors:
            raise UsageError(
                f"`resources.max_actors` is {self.max_actors}: it must be at least `resources.min_actors`, "
                f"{self.min_actors}"
            )
        # Without GPUs, processes of one thread make more of the same cores than one process of many threads: measured
        # 1.25 times as many images/s with two cores.
        on_cpus = sum(max(1, int(min(node["CPU"], node["memory"] // MODEL_MEMORY))) for node in nodes)
        small = not self.min_actors and size <= SMALL_INPUT
        most = min(self.max_actors or shards, shards)
        actors = self.min_actors or (1 if small else min(max(1, there) if on_gpus else on_cpus, most))
        # Those that are added go to nodes that have the memory, too.
        room = {"memory": min([MODEL_MEMORY, *(int(node["memory"]) for node in nodes)])} if self.max_actors else {}
        fits = max(1, (there if on_gpus else on_cpus) // max(1, len(nodes)))
        cpus = max(1, int(min((node["CPU"] for node in nodes), default=1)))
        grown = max(actors, most) if self.max_actors else actors
        per_node = max(1, -(-(actors if on_gpus else grown) // max(1, len(nodes))))
        threads = self.threads or max(1, cpus // per_node)
        # A model process computes with all of its threads but reserves half a CPU for each: decoding runs beside it,
        # or, where the input is small, in it, as a second process would start longer than it works.
        reserved = 0.5 if small else max(0.5, min(threads, cpus / per_node) / 2)
        return Plan(
            actors,
            grown,
            Compute(self.batch_size, threads, on_gpus, min(1.0, share)),
            {"num_gpus": share} if on_gpus else {"num_cpus": reserved, **room},
            max(len(nodes), -(-grown // fits)) if self.max_actors else len(nodes),
        )


def cpus_of_nodes(gpu: str) -> list[float]:
    """CPUs of each node that computes. Where there is none, but `gpu` is yes, an autoscaler is waited for to bring one.

    Raises:
        UsageError: there is none, and none will come.
    """
    import ray

    def there() -> list[float]:
        return [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]

    if not there():
        if gpu != "yes":
            raise UsageError(NO_CPUS)
        connection.check_grows("`resources.gpu` is yes")
        log.info("no node has CPUs: waiting for an autoscaler to bring one with a GPU")
        ray.get(ray.remote(_nothing).options(num_cpus=1, num_gpus=1).remote())
    return there()


def _nothing() -> None:
    """What a task does that only asks for a node."""
