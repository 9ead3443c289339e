"""Computes the vectors that ring.rs pins, from hashlib alone."""

import bisect
import hashlib


def first_eight(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def ring(nodes):
    return sorted((first_eight(f"{n}-vnode-{i}".encode()), n) for n, count in nodes for i in range(count))


def replicas(points, token, rf):
    start = bisect.bisect_left(points, (token, ""))
    found = []
    for step in range(len(points)):
        node = points[(start + step) % len(points)][1]
        if node not in found:
            found.append(node)
        if len(found) == rf:
            break
    return found


for tenant, key in [(b"acme", b"user:1"), (b"acme", b""), ("käse".encode(), b"\x00\xff"), (b"a", b"b:c"), (b"carts", b"cart-42")]:
    print("token", tenant, key, hex(first_eight(tenant + b":" + key)))
for node, index in [("node-1", 0), ("node-1", 149), ("storage-node-3", 7), ("a", 0)]:
    print("position", node, index, hex(first_eight(f"{node}-vnode-{index}".encode())))

three = ring([(f"node-{i}", 150) for i in (1, 2, 3)])
for key in ["user:1", "user:2", "cart-42", "x", "y"]:
    print("three", key, replicas(three, first_eight(b"acme:" + key.encode()), 3))
print("ends", hex(three[0][0]), hex(three[-1][0]), replicas(three, 0, 3), replicas(three, 2**64 - 1, 3))

thousand = ring([(f"node-{i}", 150) for i in range(1000)])
lists = hashlib.sha256()
for i in range(2000):
    lists.update((",".join(replicas(thousand, first_eight(b"acme:key-%d" % i), 3)) + "\n").encode())
print("thousand", lists.hexdigest())
for i in range(3):
    print("thousand", i, replicas(thousand, first_eight(b"acme:key-%d" % i), 5))


def in_rounds(points, token, rf, zone_of):
    left = replicas(points, token, len(zone_of))
    listed = []
    while left:
        taken = set()
        later = []
        for node in left:
            (later if zone_of[node] in taken else listed).append(node)
            taken.add(zone_of[node])
        left = later
    return listed[:rf]


zone_of = {f"node-{i}": ["a", "b", ""][i % 3] for i in range(9)}
nine = ring([(node, 150) for node in zone_of])
for i in range(3):
    print("zones", i, in_rounds(nine, first_eight(b"acme:key-%d" % i), 5, zone_of))
