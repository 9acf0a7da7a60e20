"""The product's promises in plain dictionaries. Where one leaves a choice, what the product chose counts if allowed."""

from collections import namedtuple

AGAIN, NO_POOL, USED_OUT, TAKEN, OUTSIDE, DEAD, GONE, ADD_AGE = 11, 100, 101, 102, 103, 105, 107, 120 * 10**9
Claim = namedtuple("Claim", "who uid interface family")  # who: ("pod", name) or ("container", node, network, id)
Pod = namedtuple("Pod", "uid hash alive lists")  # lists: (interface, family) -> names of pools; none: the call's own
Pool = namedtuple("Pool", "name ips cools disabled open", defaults=(True,))
Call = namedtuple("Call", "who uid interface container node network stamp lists exact")  # exact: as lists -> ip
Held = namedtuple("Held", "claim pool container node network stamp", defaults=("", "", "", 0))  # "": nobody speaks


class Model:
    def __init__(self):
        self.pools, self.reserved, self.moment, self.in_order = {}, {}, 0, True  # uid -> Pool, name -> addresses
        self.held, self.last, self.idle = {}, {}, {}  # ip -> Held, Claim -> ip, ip -> (whether it cools, since when)
        self.ended, self.waiting = {}, {}  # (node, container, "" for its agent's start) -> stamp, DELs in spools

    def available(self, uid):
        return self.pools[uid].ips.difference(*self.reserved.values()) if self.pools[uid].open else frozenset()

    def define(self, uid, pool):
        lost = (self.pools.get(uid, pool).ips - pool.ips) & self.held.keys()
        twins = any(each.name == pool.name or each.ips & pool.ips for id_, each in self.pools.items() if id_ != uid)
        self.pools |= {} if lost or twins else {uid: pool}
        return not lost and not twins

    def stranger(self, call, pod):  # A refusal where the cluster knows no such pod, or shows another under its name.
        return AGAIN if call.who[0] == "pod" and not pod else DEAD if pod and call.uid not in ("", *pod[:2]) else 0

    def add(self, call, pod, told, now):  # A refusal, or the address of each claim that got or has one.
        since = max(now - ADD_AGE, *(self.ended.get((call.node, each), 0) for each in ("", call.container)))
        waits = any(each[3:5] == call[3:5] for each in self.waiting.values())
        if refused := AGAIN if waits or call.stamp < since else self.stranger(call, pod):
            return refused
        lists, ids = (pod and pod.lists) or call.lists, {pool.name: uid for uid, pool in self.pools.items()}
        named = {want: [ids[name] for name in lists[want] if name in ids] for want in lists}
        fit = {want: [uid for uid in named[want] if self.pools[uid][3:] == (False, True)] for want in lists}
        code = DEAD if pod and not pod.alive else 0 if any(call.interface in want for want in lists) else NO_POOL
        if code or not all(fit.values()) or any(len(named[want]) < len(lists[want]) for want in lists):
            stays = {uid for uids in named.values() for uid in uids if not code}
            return self.give(call, pod, {(call.interface, family): stays for family in (4, 6)}, {}, {}, code or NO_POOL)
        return self.give(call, pod, named, fit, told)

    def give(self, call, pod, named, fit, told, refusal=0):  # With a refusal only those stay who hold something.
        self.moment, new = self.moment + 1, {}
        claims = {want: Claim(call.who, pod.uid if pod else call.uid, *want) for want in named}
        own = {want: self.last.get(claim) for want, claim in claims.items()}
        for want in sorted(claims, key=lambda want: want not in call.exact):
            claim, ip, exact, holder = claims[want], own[want], call.exact.get(want), self.held.get(own[want])
            binding = call[3:7] if want[0] == call.interface else ()
            if holder and binding[:2] in ((), holder[2:4]):
                new[claim] = ip, holder
            elif holder and refusal and holder.pool not in named[want]:
                return refusal
            elif holder and holder.node == call.node and call.stamp < holder.stamp:
                return AGAIN
            elif holder and holder.pool in named[want] and (refusal or exact in (None, ip)):
                new[claim] = ip, Held(claim, holder.pool, *binding)
            elif not refusal:
                theirs = {*own.values(), *(each for each, _ in new.values())}
                left = self.free(fit[want], {ip, exact or ip}) or self.free(fit[want], {exact} - {None}, theirs)
                if not left:
                    inside = any(exact in self.pools[uid].ips for uid in fit[want])
                    return TAKEN if inside else OUTSIDE if exact else USED_OUT
                chosen = told[claim] if told.get(claim) in left else min(left)
                new[claim] = chosen, Held(claim, left[chosen], *binding)
        for claim, (ip, holder) in new.items():
            if self.last.get(claim, ip) in self.held.keys() - {ip}:
                self.release(self.last[claim])
            self.last = {each: its for each, its in self.last.items() if its != ip} | {claim: ip}
            self.held[ip], _ = holder, self.idle.pop(ip, None)
        return {claim: ip for claim, (ip, _) in new.items()} or refusal

    def free(self, pools, exact, taken=()):  # What may be given, by its pool: what rested longest, else never used.
        left = {ip: uid for uid in pools for ip in self.available(uid).difference(self.held, taken) if {ip} >= exact}
        idle = {ip: self.idle.get(ip, (False, self.moment + 1)) for ip in left}
        ranks = {ip: (idle[ip][0], pools.index(uid), idle[ip][1]) for ip, uid in left.items()}
        return {ip: uid for ip, uid in left.items() if not self.in_order or ranks[ip] == min(ranks.values())}

    def release(self, ip):
        self.idle[ip] = self.pools[self.held.pop(ip).pool].cools, self.moment

    def delete(self, call, pod):  # A claim that outlives its container stays; with one that ends go the unbound ones.
        self.moment, alive, ended = self.moment + 1, pod.uid if pod and pod.alive else "", {call.uid}
        mine = {ip: each for ip, each in self.held.items() if each.claim.who == call.who}
        for ip, each in mine.items():
            if each[2:3] + each.claim[2:3] == (call.container, call.interface) and call.stamp >= each.stamp:
                static = call.who[0] == "pod" and not alive and call.uid not in ("", each.claim.uid)
                ended |= set() if static else {each.claim.uid}
                self.held[ip] = Held(each.claim, each.pool)
        for ip in [ip for ip in mine if not self.held[ip].container and mine[ip].claim.uid in ended - {"", alive}]:
            self.release(ip)

    def check(self, call, pod, expected):
        claim = call.who, pod.uid if pod else call.uid, call.interface
        mine = {ip for ip, each in self.held.items() if each.claim[:3] == claim and each.container == call.container}
        return self.stranger(call, pod) or (0 if mine and mine >= expected else GONE)
