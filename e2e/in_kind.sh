#!/bin/sh
# Runs a command with a kind cluster of its own, which has our images; the cluster is gone afterwards.
set -eu
name=plimsoll-e2e
folder=$(mktemp -d)
trap 'kind delete cluster --name "$name" >/dev/null 2>&1; rm -rf "$folder"' EXIT
export KUBECONFIG="$folder/kubeconfig"
make --no-print-directory images
kind create cluster --name "$name" --config "$(dirname "$0")/kind.yaml" --wait 180s
kind load docker-image --name "$name" plimsoll.dev/operator:dev plimsoll.dev/runtime:dev
node="$name-control-plane"
# Pod addresses are not routed to this machine, so the operator runs inside.
export PLIMSOLL_E2E_OPERATOR=chart PLIMSOLL_E2E_NODE_PORTS=31080-31083
# The kubelet starts it again by itself.
export PLIMSOLL_E2E_RESTART_API_SERVER="docker exec $node pkill -9 kube-apiserver; sleep 5; \
  until kubectl get --raw /readyz >/dev/null 2>&1; do sleep 1; done"
"$@"
