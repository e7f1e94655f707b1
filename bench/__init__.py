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
"""
