"""Messages of etcd's API, generated from `rpc.proto` by `make proto`."""
