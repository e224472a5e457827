"""How much of the cluster a job takes."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_models.errors import UsageError


@dataclass(frozen=True)
class Compute:
    """How one actor computes."""

    batch_size: int
    """Samples in one forward pass, fewer where they are large (`BATCH_BYTES`)."""
    threads: int
    """CPU threads of torch."""
    gpu: bool
    """Whether the model goes to the actor's GPU."""


MODEL_MEMORY = 2 << 30  # of a node, for each model process on CPUs
SMALL_INPUT = 16 << 10
"""Bytes of shards, a hundred sentences, with which one process is done before a second one has started."""


@dataclass(frozen=True)
class Resources:
    """What a batch job may take of the cluster; 0 means: decide by what the cluster has."""

    actors: int = 0
    """Processes that hold the model, or that read where no model is needed: by default one for each GPU, or without
    GPUs one for each CPU and 2 GiB."""
    batch_size: int = 32
    """Samples in one forward pass, fewer where they are large (16 MiB in all)."""
    threads: int = 0
    """CPU threads of each process that holds a model, also in training: by default the CPUs of its node, divided among
    these processes. With 1, as many trainings as there are CPUs can run side by side."""

    def plan(self, shards: int, size: int) -> tuple[int, Compute, dict[str, float]]:
        """Number of actors for so many shards of so many bytes in all, how each computes, and what each asks of Ray.

        Raises:
            UsageError: there is no node to compute on, or there are GPUs, but fewer than actors.
        """
        import ray  # not to tell what options there are

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            raise UsageError("no node of the cluster has CPUs for its jobs: add one (a head's num-cpus may be 0)")
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if 0 < gpus < self.actors:
            raise UsageError(
                f"`resources.actors` is {self.actors}, but the cluster has {gpus} GPUs: use at most as many"
            )
        # Without GPUs, processes of one thread make more of the same cores than one process of many threads: measured
        # 1.25 times as many images/s with two cores.
        wanted = gpus or sum(max(1, int(min(node["CPU"], node["memory"] // MODEL_MEMORY))) for node in nodes)
        small = not self.actors and size <= SMALL_INPUT
        actors = self.actors or (1 if small else min(wanted, shards))
        cpus = max(1, int(min(node["CPU"] for node in nodes)))
        per_node = max(1, -(-actors // len(nodes)))
        threads = self.threads or max(1, cpus // per_node)
        # A model process computes with all of its threads but reserves half a CPU for each: decoding runs beside it,
        # or, where the input is small, in it, as a second process would start longer than it works.
        reserved = 0.5 if small else max(0.5, min(threads, cpus / per_node) / 2)
        if gpus:
            reserved = 1.0
        return actors, Compute(self.batch_size, threads, gpus > 0), {"num_cpus": reserved, "num_gpus": min(1, gpus)}
