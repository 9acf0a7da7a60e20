"""What a runtime gets for an ADD, in the shape of the version it speaks; and whether a CHECK still finds it true.

Only the addresses of the interface at hand are in a result: the others of the pod get their own ADD.
An IPAM plugin says nothing of interfaces, and the default route has to be spelt out: a gateway makes none.

Pure. The agent answers with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cni.call import VERSIONS, CniCall
from cni.errors import CniError, Code
from ledger import addresses
from ledger.addresses import Family
from ledger.requests import Grant, Granted

FIRST_WITHOUT_FAMILY = "1.0.0"
"""From here on an address may not say its family; before it has to."""
DEFAULT_ROUTE: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}


def result(granted: Granted, call: CniCall) -> dict[str, Any]:
    """The JSON object that answers this ADD."""
    mine = [grant for grant in granted.grants if grant.claim.interface == call.interface]
    with_family = VERSIONS.index(call.version) < VERSIONS.index(FIRST_WITHOUT_FAMILY)
    routes = dict.fromkeys(route for grant in mine for route in _routes(grant))
    return {
        "cniVersion": call.version,
        "ips": [_address(grant, with_family=with_family) for grant in mine],
        "routes": [{"dst": dst, "gw": gw} for dst, gw in routes],
        "dns": {},
    }


def check(call: CniCall, held: Sequence[Grant]) -> CniError | None:
    """Why what this CHECK expects does not hold any more; `held` is what its container holds on its interface."""
    if not held:
        text = f"container {call.container} holds no address on {call.interface}"
        return CniError(Code.RESERVATION_GONE, text, version=call.version)
    lost = [addresses.text(ip) for ip in call.previous if ip not in {grant.ip for grant in held}]
    if lost:
        text = f"container {call.container} does not hold {', '.join(lost)} on {call.interface}"
        theirs = ", ".join(addresses.text(grant.ip) for grant in held)
        return CniError(Code.RESERVATION_GONE, text, f"it holds {theirs}", call.version)
    return None


def _address(grant: Grant, *, with_family: bool) -> dict[str, str]:
    gateway = grant.terms["gateway"]
    return {
        **({"version": str(addresses.family(grant.ip))} if with_family else {}),
        "address": f"{addresses.text(grant.ip)}/{grant.terms['prefix']}",
        **({"gateway": gateway} if gateway else {}),
    }


def _routes(grant: Grant) -> Iterator[tuple[str, str]]:
    """The pool's and the pod's own, then the default route, which a pod may leave to another interface."""
    yield from ((dst, gw) for dst, gw in grant.terms["routes"])
    if grant.terms["gateway"] and not grant.terms["clean_gateway"]:
        yield DEFAULT_ROUTE[addresses.family(grant.ip)], grant.terms["gateway"]
