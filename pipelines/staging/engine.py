"""The streaming computation that nights, training and judging share: shards → samples → model → staged Parquet."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data.context import AutoscalingConfig
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster import connection, reach
from pipelines.cluster.resources import Resources
from pipelines.reading.bundles import bundled
from pipelines.reading.datasource import ShardDatasource
from pipelines.reading.samples import Decode
from pipelines.reading.sandbox import jail
from pipelines.reading.units import Part
from pipelines.staging import joining
from pipelines.staging.contents import Staged
from pipelines.staging.joining import Joined, Made
from pipelines.staging.pieces import piece_name
from pipelines.staging.progress import Work, telling
from pipelines.staging.sink import StageSink
from pipelines.storage import StorageError

log = logging.getLogger(__name__)
DECODE_CPUS = 0.5
APART_CPUS = 0.4
"""Where shards are long: in a process apart from the model's, whose rows are staged while it reads on. Fused into the
model's process, a task hands over all its predictions at its end, since they are small."""
WRITE_CPUS = 0.1
CALLS_ON_GPU = 2
"""Tables that a model process with a GPU has at the same time: the batches of one are made, and the rows of another are
built, while the GPU computes. A table has few batches of a size for GPUs."""
OUTPUTS = 8
"""Shares of the bound on waiting bytes for each call of a process. Ray takes a call to have two blocks on their way, as
large as those that it has seen, 256 MiB at most, and lets an operator have a part of the bound: of less, calls wait for
each other."""
PROBE = piece_name("probe-0000000000000000", 0, 0, 0, end=True)
"""In a folder of pieces it is tidied as one whose writing was cut short, should this process be killed beside it."""
PACKS_OF_NODE = 2
"""Made at the same time, each from 64 MiB of files."""


@dataclass(frozen=True)
class Actor:
    """A class that holds a model, and its constructor's arguments before and after `Compute`; the former travel by
    Ray's object store, once to a node."""

    kind: type
    before: tuple[Any, ...]
    after: tuple[Any, ...] = ()


def stage(
    parts: Sequence[Part],
    folder: str,
    schema: pa.Schema,
    decode: Decode,
    actor: Actor | None,
    resources: Resources,
    name: str,
    stride: int = 1,
) -> Staged:
    """Read → decode (CPU) → model (actors) → staged Parquet.

    Args:
        parts: what to compute; those of a unit become one or more pieces in `folder`.
        folder: URI of the staging folder.
        schema: columns of the staged files.
        decode: raw rows → samples.
        actor: samples → output rows; None keeps the samples.
        resources: how much of the cluster to take.
        name: how Ray's metrics call it.
        stride: every n-th issue time of a radar event is a sample.
    """
    connection.start()
    wanted = resources if actor is not None else replace(resources, gpu="no", max_actors=0)
    plan = wanted.plan(len(parts), sum(part.shard.size for part in parts))  # which may wait for the first node
    nodes = computing(ray.nodes())
    reach.check(nodes, parts[0].shard.addresses[0], folder, PROBE)
    jails = _jails(nodes)
    calls = CALLS_ON_GPU if plan.compute.gpu else 1
    connection.bound_waiting(max(plan.nodes, OUTPUTS * calls * plan.most))
    _count_by_process(calls)
    if plan.compute.gpu and not ray.cluster_resources().get("GPU"):
        log.warning("%s: waits for a GPU: the cluster has none now", folder)
    # With as many CPUs as an actor of one thread asks for, Ray fuses reading into it: samples are not copied.
    bundles = bundled(parts, plan.most)
    with telling(Work.of(name, bundles)):
        dataset = ray.data.read_datasource(
            ShardDatasource(bundles, decode.options(stride), decode),
            override_num_blocks=len(bundles),
            num_cpus=DECODE_CPUS if decode.cut is None else APART_CPUS,
            concurrency=(resources.max_actors or resources.min_actors or None) if actor is None else None,
        )
    if actor is not None:
        # Whole blocks, of which a model process makes batches itself: `map_batches` itself refuses that with GPUs.
        dataset = dataset.map_batches_internal(
            actor.kind,
            fn_constructor_args=(*map(ray.put, actor.before), plan.compute, *actor.after),
            compute=ray.data.ActorPoolStrategy(
                min_size=plan.actors,
                max_size=plan.most,
                max_tasks_in_flight_per_actor=calls + 1,
                max_concurrent_calls_per_actor=calls if calls > 1 else None,  # an option would part it from reading
                enable_true_multi_threading=calls > 1,
            ),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            **plan.asks,
        )
    sink = StageSink(folder, schema, name, max(part.since for part in parts), jails)
    # As many writers as models: Ray would start a process for each waiting block, which costs more than writing it.
    dataset.write_datasink(sink, ray_remote_args={"num_cpus": WRITE_CPUS}, concurrency=plan.most)
    return replace(sink.staged, actors=plan.most)


def _jails(nodes: Collection[str]) -> frozenset[str]:
    """The decoding jails in force on these nodes, as far as they answer.

    Raises:
        UsageError: all of the jail is required, and a node lacks a part of it.
    """
    if connection.is_started_here():
        return frozenset({jail.ensure()})
    found = frozenset(reach.ask(nodes, partial(jail.ensure, jail.wanted_mode())))
    if found - {jail.WHOLE}:
        log.warning("decoding jail on the cluster's nodes: %s", ", ".join(sorted(found)))
    return found


def _count_by_process(calls: int) -> None:
    """A pool grows and shrinks by how many tables there are for each process; Ray counts them for each call of one."""
    context: Any = ray.data.DataContext.get_current()
    usual = AutoscalingConfig()
    context.autoscaling_config = replace(
        usual,
        actor_pool_util_upscaling_threshold=usual.actor_pool_util_upscaling_threshold / calls,
        actor_pool_util_downscaling_threshold=usual.actor_pool_util_downscaling_threshold / calls,
    )


def write_packs(packs: Sequence[Joined]) -> list[Made]:
    """`joining.write` by the nodes of the cluster, some packs at a time, each a task that waits for no free CPU: all is
    computed, and only the commit is left. One that is done again, as its node went, finds its file there.

    Raises: as `joining.join`; StorageError where a task's process dies over and over, too.
    """
    connection.start()
    task = ray.remote(num_cpus=0)(joining.write_one)
    free = computing(ray.nodes()) * PACKS_OF_NODE
    written: dict[ray.ObjectRef[Made], tuple[int, str]] = {}
    made: dict[int, Made] = {}

    def take() -> None:
        (done,), _ = ray.wait(list(written))
        number, node = written.pop(done)
        made[number] = _made(done)
        alive = computing(ray.nodes())
        free.append(node if node in alive else alive[number % len(alive)])

    try:
        for number, pack in enumerate(packs):
            if not free:
                take()
            node = free.pop(0)
            place = NodeAffinitySchedulingStrategy(node, soft=True)
            written[task.options(scheduling_strategy=place).remote(pack)] = number, node
        while written:
            take()
    except Exception:
        if written:  # none of them shall come when the night has gone on without
            ray.wait(list(written), num_returns=len(written))
        raise
    return [made[number] for number in range(len(packs))]


def computing(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of those nodes, as `ray.nodes` has them, that are to compute: not a head that was given no CPU."""
    alive = [node for node in nodes if node["Alive"]]
    return [node["NodeID"] for node in alive if node["Resources"].get("CPU")] or [node["NodeID"] for node in alive]


def _made(done: ray.ObjectRef[Made]) -> Made:
    try:
        return ray.get(done)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StorageError(f"a pack cannot be written: {reason}") from None
