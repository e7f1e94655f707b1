"""The wire and storage messages, generated from `proto/` by `make proto`."""
