SHELL := /bin/bash
PY := .venv/bin/python

.PHONY: proto
proto: ## Regenerate controlplane/v1 from proto/.
	$(PY) -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/controlplane/v1/*.proto
