"""The benchmark: this control plane and etcd side by side, on one machine, by one client, in one run.

How it is kept fair, in numbered rules:

1. Both sides are three real processes on loopback, on the same disk, with every write synced before it is
   acknowledged. Ours speak mutual TLS between nodes and to clients; etcd is plain, which favours etcd.
2. One Python client loads either side through grpc.aio, with the same number of tasks and the same value size.
3. The side that is not measured is paused (SIGSTOP), so that it takes no CPU from the other.
4. Turns alternate (ours, etcd, ours, etcd, ...) within one run; a figure is the median of its turns.
5. A failover is measured by fresh calls started at the survivors every few milliseconds from the signal on: the
   first one that is acknowledged ends it. Calls that were under way before the signal do not count.
6. Every phase has a deadline; what was not measured is reported as absent, never guessed.

What is about several regions and the ledger has no other side; it is told with the target that it has:

7. A fleet is three regions of one node each, which is what two cores carry; with mutual TLS, synced. Links between
   them are relays in the client's process that hold everything for 40 ms in each direction; setting up a connection
   takes no longer than that, though between distant machines it would. One clock times both ends.
8. What the ledger costs is measured twice, in turns: two regions of three nodes, one of which runs a program without
   the ledger (`bench.unledgered`); and one node in this process, where it weighs most, because nothing else is there.
   The first load is what the ledger ignores, the second all audited. Writes per second of the processor are told too:
   they do not depend on what else the machine does. Afterwards the stores are looked at, so that it is certain which
   of them had a ledger.
9. A copy counts as whole when its region says so, and its records are then counted. A bundle counts as verified when
   every claim that needs no other bundle is PASS.
"""
