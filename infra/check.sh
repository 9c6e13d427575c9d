#!/usr/bin/env bash
# Formats, validates and tests the Terraform modules without an account and, given a provider mirror, without a network.
#
#   bash infra/check.sh
#
# The aws provider comes from the folder in ESPAN_TERRAFORM_MIRROR, else from a folder that holds registry.terraform.io
# below /opt, /usr/share, /usr/local/share or ~/.terraform.d, else from Terraform's registry. Works on a copy, so that
# nothing is left behind in the tree.
set -euo pipefail

say() { printf 'infra: %s\n' "$*"; }

if ! command -v terraform >/dev/null; then
  say "terraform is not installed (1.9 or later is needed): nothing was checked" >&2
  exit 1
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

find_mirror() {
  if [[ -n "${ESPAN_TERRAFORM_MIRROR:-}" ]]; then
    printf '%s\n' "$ESPAN_TERRAFORM_MIRROR"
    return
  fi
  local folder found
  for folder in /opt /usr/share /usr/local/share "$HOME/.terraform.d"; do
    [[ -d "$folder" ]] || continue
    found=$(find "$folder" -maxdepth 3 -type d -name registry.terraform.io -print -quit 2>/dev/null) || true
    if [[ -n "$found" ]]; then
      dirname "$found"
      return
    fi
  done
}

mirror=$(find_mirror)
if [[ -n "$mirror" ]]; then
  if [[ ! -d "$mirror/registry.terraform.io" ]]; then
    say "$mirror (ESPAN_TERRAFORM_MIRROR) holds no registry.terraform.io" >&2
    exit 1
  fi
  cat >"$scratch/terraformrc" <<CONFIGURATION
provider_installation {
  filesystem_mirror {
    path    = "$mirror"
    include = ["registry.terraform.io/hashicorp/*"]
  }
  direct {
    exclude = ["registry.terraform.io/hashicorp/*"]
  }
}
CONFIGURATION
else
  : >"$scratch/terraformrc"
fi

# No account, no region and no state of the caller's reaches the checks.
export TF_CLI_CONFIG_FILE="$scratch/terraformrc" TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1
export AWS_REGION=eu-central-1 AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
unset TF_DATA_DIR TF_WORKSPACE

mkdir -p "$scratch/cluster" "$scratch/infra"
cp -R "$root/cluster/configs" "$scratch/cluster/"
for module in "$root"/infra/*/versions.tf; do
  module=$(dirname "$module")
  name=$(basename "$module")
  say "$name: terraform fmt"
  terraform fmt -check -diff -recursive "$module"
  cp -R "$module" "$scratch/infra/"
  rm -rf "$scratch/infra/$name/.terraform"* "$scratch/infra/$name"/*.tfstate*
  cd "$scratch/infra/$name"
  say "$name: terraform init, validate and test"
  terraform init -backend=false -input=false -no-color >"$scratch/init.log" || { cat "$scratch/init.log" >&2; exit 1; }
  terraform validate -no-color
  terraform test -no-color
done
say "passed"
