#!/usr/bin/env bash
# Prints the newest section of CHANGELOG.md, which must be the one of the given tag.
#
#   bash .github/release-notes.sh v0.1.0
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:?name the tag, for instance v0.1.0}
heading=$(awk '/^## / { print substr($0, 4); exit }' CHANGELOG.md)
if [[ "${heading%% *}" != "${tag#v}" ]]; then
  echo "CHANGELOG.md begins with '$heading', not with ${tag#v}: add its section first" >&2
  exit 1
fi
if [[ "$heading" == *unreleased* ]]; then
  echo "CHANGELOG.md still calls ${tag#v} unreleased: give it a date first" >&2
  exit 1
fi
awk '/^## / { sections++; next } sections == 1' CHANGELOG.md | awk 'NF { started = 1 } started'
