"""What the rules of `test_model` draw, always from the same ranges: numbers that get a meaning by what there is."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from ledger.redefine import DefinePool
from tests.acts import a_pool
from tests.model import Call, Pool
from tests.pods import ANNOTATIONS
from tests.world import Op, World

POOLS = ("a", "b", "c", "x", "y")
UNIVERSE = {4: [f"10.1.0.{number}" for number in range(1, 14)], 6: [f"fd00::{number:x}" for number in range(1, 8)]}
SUBNETS = {4: "10.1.0.0/24", 6: "fd00::/64"}
REACH = {"a": (4, 0), "b": (4, 4), "c": (4, 8), "x": (6, 0), "y": (6, 2)}  # Where its five addresses begin.
AT_FIRST = {"a": 0b11111, "b": 0b11110, "c": 0b11110, "x": 0b11111, "y": 0b11000}
LISTS = ({4: ("a", "b"), 6: ("x",)}, {4: ("b", "c", "a")}, {6: ("y", "x")}, {4: ("c",)})
COOLING_SECONDS = 3_600  # Nothing gets ready again within an example.
PODS = 3  # The slots above are no pods: containers outside Kubernetes.
CALLS_REMEMBERED = 20
NO_CALL = Call(("",), "", "", "", "", "", 0, {}, {})

often = st.sampled_from
places = st.integers(0, CALLS_REMEMBERED - 1)
nodes = st.integers(0, 1)
pods = st.integers(0, PODS - 1)
annotations = st.integers(0, len(ANNOTATIONS) - 1)
networks = often(("net-1", "net-1", "net-1", "net-2"))
commands = often(("ADD", "ADD", "ADD", "ADD", "DEL", "DEL", "CHECK"))


@dataclass(frozen=True)
class Wish:
    """Of whom a call speaks, and how."""

    slot: int
    node: int
    network: str
    interface: str
    container: str
    sent: str
    lists: int
    exact: int | None


@dataclass(frozen=True)
class Edit:
    """A pool as it shall be: which of the five addresses it can reach it has, and which of those it excludes."""

    name: str
    mask: int
    excluded: int = 0
    cools: bool = False
    disabled: bool = False
    anew: bool = False


wishes = st.builds(
    Wish,
    slot=st.integers(0, PODS + 3),
    node=nodes,
    network=networks,
    interface=often(("eth0", "eth0", "net1")),
    container=often(("newest", "newest", "newest", "new", "before")),
    sent=often(("right", "right", "right", "right", "none", "before")),
    lists=st.integers(0, len(LISTS) - 1),
    exact=st.none() | st.none() | st.integers(0, 12),
)
edits = st.builds(
    Edit,
    name=often(POOLS),
    mask=st.integers(0, 31) | st.just(31),
    excluded=st.just(0) | st.integers(0, 31),
    cools=often((False, False, True)),
    disabled=often((False, False, False, True)),
    anew=often((False, False, False, True)),
)


class Calls:
    """The calls that runtimes have begun, and the containers they know."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._containers: dict[int, list[str]] = {}
        self._calls: list[Op] = []

    def begin(self, command: str, wish: Wish) -> Op:
        """The call as the runtime begins it now."""
        world, interface = self._world, wish.interface
        name = f"web-{wish.slot}" if wish.slot < PODS else ""
        node = world.pods.now[name].node if name in world.pods.now else world.node(wish.node).name
        container = self._container(wish)
        who, uid = ("pod", name), world.pods.uid(name, wish.sent)
        if not name:
            who, uid = ("container", node, wish.network, container), container
        lists = {(interface, family): names for family, names in LISTS[wish.lists].items()}
        exact = {}
        if wish.exact is not None:
            exact = {(interface, family): ips[wish.exact % len(ips)] for family, ips in UNIVERSE.items()}
        stamp = world.stamp(node)
        call = Call(who, uid, interface, container, node, wish.network, stamp, lists, exact)
        self._calls = [*self._calls[1 - CALLS_REMEMBERED :], Op(command, call, expected=self._expected(call, wish))]
        return self._calls[-1]

    def again(self, which: int) -> Op | None:
        """One of the calls that have begun."""
        return self._calls[which % len(self._calls)] if self._calls else None

    def check(self, call: Call) -> Op:
        """Whether this call's container still has what it was given."""
        return Op("CHECK", call._replace(stamp=self._world.stamp(call.node)), expected=self._given(call))

    def _container(self, wish: Wish) -> str:
        known = self._containers.setdefault(wish.slot, [])
        if wish.container == "new" or not known:
            known.append(f"c{wish.slot}.{len(known)}")
        return known[-2] if wish.container == "before" and len(known) > 1 else known[-1]

    def _expected(self, call: Call, wish: Wish) -> frozenset[str]:
        """The addresses that a CHECK speaks of; some speak of others than were given."""
        return self._given(call) | ({UNIVERSE[4][wish.exact]} if wish.exact is not None else set())

    def _given(self, call: Call) -> frozenset[str]:
        held = self._world.model.held.items()
        whose = call.container, call.interface
        return frozenset(ip for ip, each in held if (each.container, each.claim.interface) == whose)


def pool_of(edit: Edit, uid: str) -> Op:
    """The change that makes the pool so, in the product's words and in the model's."""
    family, begin = REACH[edit.name]
    reach = UNIVERSE[family][begin : begin + 5]
    listed = {ip for bit, ip in enumerate(reach) if edit.mask >> bit & 1}
    excluded = {ip for bit, ip in enumerate(reach) if edit.excluded >> bit & 1}
    given = a_pool(
        edit.name,
        *sorted(listed),
        uid=uid,
        cooling=COOLING_SECONDS if edit.cools else 0,
        disable=edit.disabled,
        exclude_ips=tuple(sorted(excluded)),
        subnet=SUBNETS[family],
    )
    pool = Pool(edit.name, frozenset(listed - excluded), edit.cools, edit.disabled)
    return Op("DEFINE", NO_CALL, pool=(uid, pool), change=DefinePool(given))
