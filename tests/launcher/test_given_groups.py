"""Ranks in placement groups that somebody else has made."""

import pytest

from engine.config import Device
from launcher.cluster import Node
from launcher.errors import Refused
from launcher.plan import Bundle, PlacementGroup
from tests.launcher.samples import GIB, cluster_of, on_ray, plan_for


def group_of(*sizes: dict[str, int], node: str = "head") -> PlacementGroup:
    bundles = tuple(Bundle(resources=size, node=node) for size in sizes)
    return PlacementGroup(name=f"given-on-{node}", strategy="PACK", bundles=bundles)


def test_groups_that_are_given_say_where_ranks_run():
    small = Node(id="small", cpus=4, memory_bytes=16 * GIB)
    given = [
        group_of({"CPU": 1}, {"GPU": 1}, node="small"),
        group_of({"CPU": 2}, {"CPU": 2}),
    ]
    config = on_ray("auto", dp=3, engine__device=Device.cpu)
    plan = plan_for(config, cluster=cluster_of(small), given=given)
    assert plan.groups == tuple(given)
    workers = [process.workers[0] for process in plan.processes if process.rank is not None]
    assert [(each.node, each.group, each.bundle) for each in workers] == [
        ("small", "given-on-small", 0),
        ("head", "given-on-head", 0),
        ("head", "given-on-head", 1),
    ]


def test_groups_that_are_given_and_too_small_are_refused():
    given = [group_of({"CPU": 1}, {"CPU": 0})]
    with pytest.raises(Refused, match="1 placement group with 2 bundles: room for 1 rank") as told:
        plan_for(on_ray("auto", dp=2), cluster=cluster_of(), given=given)
    assert told.value.hint == "dp=1"
    with pytest.raises(Refused, match="topology must be auto: split"):
        plan_for(on_ray("split", dp=2), cluster=cluster_of(), given=given)
