#!/usr/bin/env bash
# Installs Debian's `chromium` where there is none and where that is allowed: its libraries are too many to unpack beside it, so it
# needs root. It never fails: what is missing then is said by the tests that want it.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    type -P "$name" >/dev/null && exit 0
done
{ type -P apt-get && [ "$(id -u)" = 0 ]; } >/dev/null || exit 0

echo "Installing chromium for the tests"
log=$(mktemp)
trap 'rm "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
{ apt-get -qq -o Acquire::Retries=1 update && apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1 ||
    echo "That failed: $(tail -n 1 "$log")"
