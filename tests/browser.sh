#!/usr/bin/env bash
# Brings a Chromium for the tests that look at report pages, unless one is there: ESPAN_BROWSER names one, or the path has it.
#
#   bash tests/browser.sh [PYTHON]
#
# As root on Debian, as in a container, it is Debian's package; elsewhere playwright's build, in the user's cache.
set -euo pipefail

python=${1:-python3}

say() { printf 'browser: %s\n' "$*"; }

if [[ -n "${ESPAN_BROWSER:-}" ]]; then
  [[ -x "$ESPAN_BROWSER" ]] && exit 0
  say "$ESPAN_BROWSER (ESPAN_BROWSER) is no program" >&2
  exit 1
fi
for name in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
  say "installing Debian's chromium-headless-shell"
  export DEBIAN_FRONTEND=noninteractive
  if apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null; then exit 0; fi
fi
say "installing playwright's Chromium"
if "$python" -m playwright install chromium; then exit 0; fi
say "no Chromium could be installed: the tests in a browser will be skipped; install one, or name it in ESPAN_BROWSER" >&2
